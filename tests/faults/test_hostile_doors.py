"""Files from a stranger at every door: no code of theirs runs, no path leaves its folder, no size is believed.

What else is tried on one kind of file stands beside its reader: tests/checkpoint/test_damage.py,
tests/data/test_reader_damage.py, tests/exchange/test_bad_folders.py, tests/config/test_hostfile.py.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.exchange import universal
from megatron_slw.exchange.tokenizer_files import copied_files
from megatron_slw.growth import flags
from megatron_slw.testing import tiny_config, write_random_checkpoint
from tests.config.conftest import GOOD
from tests.data.test_tiktoken_ranks import write_ranks
from tests.data.token_datasets import write_dataset
from tests.faults import doors
from tests.faults.mutations import EXPRESSION
from tests.train.test_pretrain import ROOT, environment
from tools import inspect_checkpoint

pytestmark = pytest.mark.fault(8)
MARKER = "executed"


class Evil:
    """Pickled, it is a call of `open`, which leaves a file behind."""

    def __reduce__(self) -> Any:
        return open, (MARKER, "w")


def torch_file(legacy: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"param": Evil()}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Evil()], dtype=object), allow_pickle=True)
    return stream.getvalue()


PAYLOADS: dict[str, Callable[[], bytes]] = {
    "pickle protocol 0": lambda: pickle.dumps(Evil(), 0),
    "pickle protocol 5": lambda: pickle.dumps(Evil(), 5),
    "torch.save": lambda: torch_file(False),
    "torch.save of old": lambda: torch_file(True),
    "numpy object array": numpy_file,
    "expression": EXPRESSION.encode,
    "JSON expression": lambda: json.dumps({"step": EXPRESSION, "megatron_slw": EXPRESSION}).encode(),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    doors.build(folder)
    return folder


def test_the_payloads_do_run_where_they_are_let(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pickle protocol 0", "pickle protocol 5"):
        pickle.loads(PAYLOADS[name]()).close()
        (tmp_path / MARKER).unlink()
    for name in ("torch.save", "torch.save of old"):
        torch.load(io.BytesIO(PAYLOADS[name]()), weights_only=False)["param"].close()
        (tmp_path / MARKER).unlink()
    np.load(io.BytesIO(PAYLOADS["numpy object array"]()), allow_pickle=True)[0].close()
    (tmp_path / MARKER).unlink()
    eval(EXPRESSION)
    (tmp_path / MARKER).unlink()


@pytest.mark.parametrize("door", doors.DOORS)
def test_nothing_in_a_file_is_executed(
    built: Path, door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, injections: Callable[[int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = built / doors.DOORS[door][0]
    before = path.read_bytes() if path.exists() else None
    injections(len(PAYLOADS))
    try:
        for name, payload in PAYLOADS.items():
            path.write_bytes(payload())
            said = doors.tried(door, built)
            assert not (tmp_path / MARKER).exists(), f"{name} was run"
            may_be_taken = door in (*doors.ANY_BYTES, *doors.UNREAD) or name == "JSON expression"
            assert said == "refused" or (said == "taken" and may_be_taken), f"{name}: {said}"
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@pytest.mark.campaign
def test_sizes_depth_and_numbers_at_every_door(tmp_path: Path, injections: Callable[[int], None]) -> None:
    """In a process that may take 1 GB: nested lists, digits without end, a name twice, files that are not there."""
    command = [sys.executable, "-m", "tests.faults.doors", str(tmp_path)]
    env = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    pairs = list(zip(lines[:-1:2], lines[1::2], strict=False))
    wrong = [f"{where}: {said}" for where, said in pairs if said not in ("end refused", "end taken")]
    assert not wrong, "\n".join(wrong)
    assert done.returncode == 0, f"the process died at {lines[-1:]}: {done.stderr[-1000:]}"
    injections(int(lines[-1].split()[1]))


OUTSIDE = ("../secret", "/etc/hostname", "..", "a/../../secret", "good ../secret", "..\\secret", "a\nb")


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda name: ascii(name))
def test_a_sidecar_names_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    """A tokenizer that really lies there, and is the right one but for its place."""
    write_ranks(tmp_path / "secret")
    (tmp_path / "data").mkdir()
    info = TokenizerInfo("HuggingFaceTokenizer", "plain", "ab" * 32, 300, 0)
    write_dataset(tmp_path / "data" / "x", [[1, 2]], tokenizer=info)
    sidecar = tmp_path / "data" / "x.json"
    content = json.loads(sidecar.read_text())
    content["tokenizer"]["name"] = name
    sidecar.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"tokenizer\.name .* is not the name of a file"):
        dataset_tokenizer(tmp_path / "data" / "x")


@pytest.mark.parametrize("name", ["../other", "/tmp", "..", ".", "a/b", "", "x" * 300])
def test_latest_universal_names_no_folder_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "other" / "zero").mkdir(parents=True)
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "latest_universal").write_text(name)
    with pytest.raises(ConfigError, match="is not the name of a folder"):
        universal.find_folder(tmp_path / "load")


def test_a_copied_tokenizer_takes_no_file_from_elsewhere_along(tmp_path: Path) -> None:
    """But in Hugging Face's cache, where all files are links to `../../blobs`."""
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "1a2b", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "5f").write_text('{"a": 0, "b": 1, "ab": 2}')
    (snapshot / "vocab.json").symlink_to("../../blobs/5f")
    (snapshot / "merges.txt").write_text("a b\n")
    assert copied_files(str(snapshot))[1] == 3
    (tmp_path / "id_rsa").write_text("{}")
    (snapshot / "special_tokens_map.json").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ConfigError, match=r"special_tokens_map\.json is a link to .*id_rsa, outside of its folder"):
        copied_files(str(snapshot))


def expanded() -> bytes:
    """A tensor of 4 TB that is one number."""
    stream = io.BytesIO()
    torch.save({"param": torch.zeros(1).expand(1 << 40)}, stream)
    return stream.getvalue()


def packed() -> bytes:
    """A tensor of 64 MB packed into a thousandth of it."""
    stream, out = io.BytesIO(), io.BytesIO()
    torch.save({"param": torch.zeros(1 << 20)}, stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in plain.namelist():
            content = bytes(1 << 26) if name.endswith("data/0") else plain.read(name)
            zipped.writestr(name, content.replace(b"J\x00\x00\x10\x00", b"J\x00\x00\x00\x01"))
    return out.getvalue()


@pytest.mark.parametrize("content", [expanded, packed])
def test_a_deepspeed_tensor_is_no_larger_than_its_file(tmp_path: Path, content: Callable[[], bytes]) -> None:
    (tmp_path / "fp32.pt").write_bytes(content())
    with pytest.raises(ConfigError, match=r"fp32\.pt") as said:
        universal.read_tensor(tmp_path / "fp32.pt", (2, 2))
    print(said.value)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An import path whose module leaves a file behind when it is imported."""
    name = f"hostile_{tmp_path.name}"
    marker = str(tmp_path / MARKER)
    (tmp_path / f"{name}.py").write_text(f"open({marker!r}, 'w').close()\ndef f(t, low, high): return low\n")
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:f"


@pytest.mark.parametrize("setting", ["logging.callback", "schedule_config.function"])
def test_a_checkpoint_chooses_no_code(tmp_path: Path, hostile: str, setting: str) -> None:
    """A module that a stranger's checkpoint names is not imported, unless the user names it too."""
    path = write_random_checkpoint(tiny_config(tmp_path), tmp_path / "run" / "checkpoints", 4)
    state = json.loads((path / "state.json").read_text())
    if setting == "logging.callback":
        state["config"]["logging"]["callback"] = hostile
    else:
        custom = {"schedule_type": "custom", "function": hostile, "difficulty": None, "max_step": None}
        state["config"]["curriculum"] |= custom
    (path / "state.json").write_text(json.dumps(state))
    doors.reseal(path)
    assert hostile in str(Checkpoint(path).config)
    assert inspect_checkpoint.main([str(path), "--verify"]) == 0
    grow = ["--load", str(path), "--save", str(tmp_path / "new" / "checkpoints" / "step_000004"), "--depth", "2"]
    grow += ["--no-verify", "--training.train_steps=20"]
    with pytest.raises(ConfigError, match=rf'{setting} is "{hostile}", the import path') as said:
        flags.plan(flags.parse(grow, ""))
    assert not (tmp_path / MARKER).exists(), "the module was imported"
    asked = str(said.value).split("Give ")[1].split(" ")[0]
    flags.plan(flags.parse([*grow, asked], ""))
    assert (tmp_path / MARKER).exists() == (setting != "logging.callback"), "only a schedule is needed to grow"


def test_reading_a_configuration_imports_nothing(tmp_path: Path, hostile: str) -> None:
    good = copy.deepcopy(GOOD)
    good["megatron_slw"]["logging"]["callback"] = hostile
    (tmp_path / "config.json").write_text(json.dumps(good))
    assert load_config(tmp_path / "config.json", (), 8).logging.callback == hostile
    assert not (tmp_path / MARKER).exists(), "the module was imported"
