"""DeepSpeed's universal checkpoint, with DeepSpeed's own engine and converter on the other side."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import load_config
from megatron_slw.exchange.gpt2 import gpt2_name, to_gpt2
from megatron_slw.testing import WorkerPool, tiny_config, write_random_checkpoint, write_tiny_dataset
from tests.checkpoint import jobs
from tests.exchange.models import write_base
from tools import export_deepspeed, import_deepspeed

pytest.importorskip("transformers")
SIZES = {"model__vocab_size": 301, "model__seq_length": 48, "curriculum": None}
Capture = pytest.CaptureFixture[str]


def as_gpt2(path: Path) -> dict[str, np.ndarray]:
    """A checkpoint's tensors under transformers' names."""
    checkpoint = Checkpoint(path)
    found = {}
    for key in checkpoint.shapes:
        kind, _, name = key.partition("/")
        found[f"{kind}/{gpt2_name(name)}"] = to_gpt2(name, checkpoint.tensor(key), checkpoint.config.model).numpy()
    return found


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after 5 steps with random moments."""
    folder = tmp_path_factory.mktemp("ours")
    config = tiny_config(folder, **SIZES)
    return write_random_checkpoint(config, folder / "checkpoints", 5)


@pytest.fixture(scope="module")
def exported(ours: Path) -> Path:
    save = ours.parents[1] / "universal"
    assert export_deepspeed.main(["--load", str(ours), "--save", str(save)]) == 0
    return save


@pytest.mark.parametrize(("stage", "world"), [(1, 2), (3, 2)])
def test_deepspeed_goes_on_from_an_export(
    pool: WorkerPool, ours: Path, exported: Path, stage: int, world: int
) -> None:
    from tests.exchange.engine_jobs import load_and_train

    result = pool.run(load_and_train, world, (exported, stage))[0]
    expected = as_gpt2(ours)
    assert result["state"].keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(result["state"][key], value), key
    assert result["steps"] == {5} and result["global_steps"] == 5
    assert result["rates"] == [3e-3, 2e-3], "the engine's own rates are lost"
    assert result["losses"][1] != result["losses"][0], "it does not train"


@pytest.fixture(scope="module")
def theirs(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A run of DeepSpeed's on two ranks, converted by its own tool, and its state."""
    from tests.exchange.engine_jobs import train_and_save

    folder = tmp_path_factory.mktemp("theirs")
    state = pool.run(train_and_save, 2, (folder, 1))[0]
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder", str(folder / "global_step3"),
        "--output_folder", str(folder / "global_step3_universal"), "--num_extract_workers", "1",
        "--num_merge_workers", "1", "--inject_missing_state",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, state


def imported(load: Path, folder: Path, *flags: str) -> int:
    base = write_base(folder, **SIZES)
    save = folder / "run" / "checkpoints" / "step_000000"
    return import_deepspeed.main(["--load", str(load), "--save", str(save), "--ds-config", str(base), *flags])


def test_a_run_of_deepspeeds_goes_on_here(
    pool: WorkerPool, theirs: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder, state = theirs
    assert imported(folder, tmp_path) == 0
    found = as_gpt2(tmp_path / "run" / "checkpoints" / "step_000000")
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert np.array_equal(found[key], value), key
    write_tiny_dataset(tmp_path / "data")
    result = pool.run(jobs.run, 1, (load_config(tmp_path / "run" / "ds_config.json"), 2, (2,)))[0]
    assert len(result["losses"]) == 2
    assert Checkpoint(tmp_path / "run" / "checkpoints" / "step_000002").optimizer_steps == 3 + 2


@pytest.mark.parametrize("names", ["transformers", "megatron_slw"])
def test_round_trip_gives_the_same_tensors(ours: Path, tmp_path: Path, names: str) -> None:
    out = tmp_path / "out"
    assert export_deepspeed.main(["--load", str(ours), "--save", str(out), "--names", names]) == 0
    assert imported(out, tmp_path) == 0
    before, after = Checkpoint(ours), Checkpoint(tmp_path / "run" / "checkpoints" / "step_000000")
    assert after.optimizer_steps == 5
    vocab = 301 if names == "transformers" else 384  # padding rows are not carried to others
    for key in before.shapes:
        rows = vocab if "word_embeddings" in key else None
        assert torch.equal(before.tensor(key)[:rows], after.tensor(key)[:rows]), key


def zero(folder: Path) -> Path:
    return next(folder.glob("*_universal")) / "zero"


def replace(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: torch.save(value, zero(folder) / name)


class Runs:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


WORDS, NORM = "transformer.wte.weight", "transformer.ln_f.weight"
BAD: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "code": (replace(f"{NORM}/fp32.pt", {"param": Runs()}), [], "holds more than tensors"),
    "code in the step": (replace(f"{WORDS}/step.pt", Runs()), [], "holds more than tensors"),
    "no step": (replace(f"{WORDS}/step.pt", torch.tensor(0.5)), [], "not the number of a step"),
    "no tensor": (replace(f"{NORM}/exp_avg.pt", {"param": 3}), [], "holds a int, not an fp32 tensor"),
    "half precision": (
        replace(f"{NORM}/exp_avg.pt", {"param": torch.zeros(32).half()}), [], "not an fp32 tensor"
    ),
    "huge by strides": (replace(f"{NORM}/fp32.pt", {"param": torch.zeros(1).expand(1 << 50)}), [], "has shape"),
    "a cut file": (lambda f: os.truncate(zero(f) / NORM / "fp32.pt", 500), [], "is damaged"),
    "a missing file": (lambda f: (zero(f) / NORM / "exp_avg_sq.pt").unlink(), [], "is not there"),
    "no zero": (lambda f: zero(f).rename(f / "other"), [], "not a universal checkpoint"),
    "latest outside": (lambda f: (f / "latest_universal").write_text("../x"), [], "not the name of a folder"),
    "another model": (lambda f: (zero(f) / WORDS).rename(zero(f) / "x"), [], "of another model than GPT-2"),
    "fewer layers": (lambda f: None, ["--model.num_layers=1"], "more than the 1 layers"),
    "more layers": (lambda f: None, ["--model.num_layers=3"], "Set model.* to the sizes"),
    "another width": (lambda f: None, ["--model.hidden_size=64"], "needs [301, 64]"),
    "SGD": (lambda f: None, ['--optimizer={"type": "SGD", "params": {"lr": 0.1}}'], "the moments of Adam"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, case: str
) -> None:
    change, flags, wanted = BAD[case]
    shutil.copytree(exported, tmp_path / "universal")
    change(tmp_path / "universal")
    monkeypatch.chdir(tmp_path)
    assert imported(tmp_path / "universal", tmp_path, *flags) == 2
    said = capsys.readouterr().err.strip()
    assert wanted in said and "\n" not in said, said
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not checkpoints.exists() or not list(checkpoints.iterdir()), "something was left behind"
    assert not (tmp_path / "pwned").exists(), "a file's code was run"


def test_what_has_no_moments_is_not_exported(tmp_path: Path, capsys: Capture) -> None:
    config = tiny_config(tmp_path, **SIZES, optimizer={"type": "SGD", "lr": 0.1})
    load = write_random_checkpoint(config, tmp_path / "checkpoints", 5, kinds=("weight",))
    assert export_deepspeed.main(["--load", str(load), "--save", str(tmp_path / "out")]) == 2
    assert "holds the state of Adam" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
