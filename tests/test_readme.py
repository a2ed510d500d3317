"""README tells the truth: its commands are run, its links and the paths of its layout exist."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_slw.config.load import load_config
from megatron_slw.data.vocabulary import resolve_vocab_size
from megatron_slw.train.job import open_data

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "csrc/README.md",
]

RUN_ELSEWHERE = {
    "make quickstart": "tests/examples/test_quickstart_run.py",
    "make test": ".ci/run",
    "deepspeed": "tests/train/test_pretrain.py",
    "python tools/evaluate.py": "tests/tools/test_evaluate.py",
    "python tools/generate.py": "tests/tools/test_generate_tool.py",
    "python tools/report.py": "tests/tools/test_report.py",
    "python tools/grow_checkpoint.py": "tests/growth/test_grow_checkpoint.py",
}
"""Commands that take minutes or a trained model, and the file that runs them."""


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def run_here(command: str) -> bool:
    return not any(command.startswith(prefix) for prefix in RUN_ELSEWHERE)


def main_of(program: str) -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location(Path(program).stem, ROOT / program)
    assert spec is not None and spec.loader is not None, f"{program} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_commands_of_your_own_model_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, in an empty folder with a my.jsonl; the dry run prints what README shows."""
    words = "the length of a sequence grows while the model learns".split()
    texts = [" ".join(words[i % 7 :] * 20) + f" {i}" for i in range(500)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.chdir(tmp_path)
    ran = 0
    for command in filter(run_here, commands()):
        command = command.replace("8192", "300")  # the text is too short for more pieces
        python, program, *argv = shlex.split(command)
        assert python == "python", f"no test runs: {command}"
        argv = [str(ROOT / arg) if arg.startswith("examples/") else arg for arg in argv]
        assert main_of(program)(argv) == 0, command
        ran += 1
    assert ran >= 3
    (shown,) = re.findall(r"It begins:\n\n```\n(.*?)```", README, flags=re.S)
    assert shown in capsys.readouterr().out
    (launch,) = [c.replace("8192", "300") for c in commands() if c.startswith("deepspeed")]
    *_, ranks, program, flag, path = shlex.split(launch)[:6]
    assert (program, flag) == ("pretrain_gpt.py", "--ds-config"), f"not understood: {launch}"
    config = load_config(ROOT / path, shlex.split(launch)[6:], int(ranks))
    train, _ = open_data(config)
    assert len(train) > 0 and resolve_vocab_size(train.dataset, config.model.vocab_size) == 300


@pytest.mark.parametrize("prefix", RUN_ELSEWHERE)
def test_other_commands_are_run_by(prefix: str) -> None:
    assert any(command.startswith(prefix) for command in commands()), f"README no longer has {prefix}"
    path = ROOT / RUN_ELSEWHERE[prefix]
    program = Path(prefix.split()[-1]).stem
    assert path.is_file() and program in path.read_text(), f"{path} does not run {prefix}"


def test_quickstart_leaves_what_the_next_commands_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grown model's last checkpoint, and the small model's, from which it grew."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "quickstart"))
    pipeline = importlib.import_module("pipeline")
    config = ROOT / "examples/quickstart/ds_slw.json"
    settings = pipeline.Settings(None, Path("data/quickstart"), Path("runs/quickstart"), config)
    small, _ = pipeline.Quickstart(settings).training(vocab_size=8192)
    grown = settings.run / "grown" / "checkpoints" / f"step_{small.total_steps:06d}"
    loads = re.findall(r"--load (\S+)", "\n".join(commands()))
    assert loads == [str(grown), str(grown), str(small.final_checkpoint)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            assert linked.is_file(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_layout_map_is_the_tree() -> None:
    (block,) = re.findall(r"## Layout\n\n```\n(.*?)```", README, flags=re.S)
    inside = False
    listed = set()
    for line in block.splitlines():
        name = line.split()[0]
        inside = line.startswith("  ") or (inside and not line.strip())
        path = ROOT / "megatron_slw" / name if inside else ROOT / name
        assert path.exists(), f"the layout lists {name}"
        listed.add(path.name)
    packages = {path.parent.name for path in (ROOT / "megatron_slw").glob("*/__init__.py")}
    assert packages <= listed, f"the layout leaves out {packages - listed}"
