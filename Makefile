# make quickstart [CORPUS=file.jsonl]   train a small GPT on real text, from nothing, in one command
# make test                             linter, type checker and every test
# make faults                           the whole campaign of injected faults
PYTHON ?= python3
CORPUS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
# DeepSpeed finds its launcher and ninja by PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: quickstart test faults lint clean

quickstart: $(VENV)/kernels.stamp
	$(BIN)/python examples/quickstart/run.py $(if $(CORPUS),--corpus "$(CORPUS)")

test: lint $(VENV)/kernels.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

faults: $(VENV)/requirements-dev.stamp $(VENV)/kernels.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m "" --fault-results benchmarks/results/faults_cpu.json $(PYTEST_ARGS)

lint: $(VENV)/requirements-dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy megatron_slw tools pretrain_gpt.py

# A stamp is written after its command succeeded, so an interrupted installation is taken up again.
$(VENV)/created.stamp:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else \
	    "Python 3.11 or 3.12 is needed, $(PYTHON) is %d.%d. Choose another: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/requirements.stamp: requirements.txt setup.py pyproject.toml $(VENV)/created.stamp
	@echo "installing requirements.txt into $(VENV) (some minutes the first time)"
	@$(PIP_INSTALL) -r requirements.txt
	@$(PIP_INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/kernels.stamp: $(wildcard csrc/*.* csrc/cpu/*.*) $(VENV)/requirements.stamp
	@echo "building the kernels"
	@$(BIN)/python csrc/build.py
	@touch $@

$(VENV)/requirements-dev.stamp: requirements-dev.txt $(VENV)/requirements.stamp
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist megatron_slw/ops/*.so *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
