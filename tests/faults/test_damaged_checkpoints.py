"""A checkpoint that is not whole is refused, and the message names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_slw.checkpoint.format import commit, file_record, latest_checkpoint, remove_debris
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.parallel.sharding import Shard
from megatron_slw.slw.stability import Stability
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from tests.checkpoint import jobs

TENSORS = "tensors-00001-000.safetensors"
KEY = "weight/layers.0.mlp.dense_h_to_4h.weight"


@pytest.fixture(scope="module")
def saved(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory's checkpoints after steps 2 and 4, written by two tensor-parallel ranks."""
    folder = tmp_path_factory.mktemp("damage")
    write_tiny_dataset(folder / "data")
    config = tiny_config(folder, world_size=2, parallel={"tensor": 2})
    pool.run(jobs.run, 2, (config, 4, (2, 4)))
    return folder / "run" / "checkpoints"


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reseal(checkpoint: Path) -> None:
    """Make the manifest agree with the files again, so that the content itself is judged."""
    def update(manifest: dict) -> None:
        for name in manifest["files"]:
            record = file_record(checkpoint / name)
            manifest["files"][name] = {"bytes": record.size, "sha256": record.sha256}

    edit_json(checkpoint / "manifest.json", update)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit_block(checkpoint: Path, **fields: object) -> None:
    """Change the index entry of one tensor, and reseal."""
    index = checkpoint / "index-00001.json"
    key = "weight/layers.0.mlp.dense_h_to_4h.weight"
    edit_json(index, lambda content: content["blocks"][key].update(fields))
    reseal(checkpoint)


def edit_state(checkpoint: Path, change: Callable[[dict], object]) -> None:
    edit_json(checkpoint / "state.json", change)
    reseal(checkpoint)


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old}"
    path.write_text(text.replace(old, new, 1))


def edit_header(checkpoint: Path, change: Callable[[dict, str], object]) -> None:
    """A lie about one tensor in a safetensors file whose hash is made to agree."""
    path = checkpoint / TENSORS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header, KEY)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    reseal(checkpoint)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "manifest missing": (lambda c: (c / "manifest.json").unlink(), "has no manifest.json"),
    "manifest empty": (lambda c: (c / "manifest.json").write_text(""), "manifest.json is not JSON"),
    "manifest of another version": (
        lambda c: edit_json(c / "manifest.json", lambda m: m.update(version=99)), "version 99"),
    "manifest of another program": (
        lambda c: edit_json(c / "manifest.json", lambda m: m.update(format="x")), "manifest.json says 'x'"),
    "file name leaves the folder": (
        lambda c: edit_json(
            c / "manifest.json", lambda m: m["files"].update({"../state.json": m["files"]["state.json"]})),
        "not a plain file name"),
    "size is no number": (
        lambda c: edit_json(c / "manifest.json", lambda m: m["files"]["state.json"].update(bytes=-1)),
        "state.json.bytes"),
    "tensors missing": (lambda c: (c / TENSORS).unlink(), TENSORS),
    "tensors a link": (
        lambda c: ((c / TENSORS).rename(c.parent / "elsewhere"), (c / TENSORS).symlink_to(c.parent / "elsewhere")),
        TENSORS),
    "tensors cut short": (lambda c: os.truncate(c / TENSORS, 1000), f"{TENSORS} has 1000 bytes"),
    "tensors with a flipped bit": (lambda c: flip(c / TENSORS, 5000), f"{TENSORS} does not match its SHA-256"),
    "state with a flipped bit": (lambda c: flip(c / "state.json", 2), "state.json"),
    "index missing": (lambda c: (c / "index-00001.json").unlink(), "index-00001.json"),
    "tensor files swapped": (
        lambda c: shutil.copy(c / "tensors-00000-000.safetensors", c / TENSORS), TENSORS),
    "no safetensors at all": (
        lambda c: ((c / TENSORS).write_bytes(b"\xff" * 4096), reseal(c)), f"{TENSORS} cannot be read"),
    "header longer than the file": (
        lambda c: ((c / TENSORS).write_bytes((1 << 60).to_bytes(8, "little") + b"{}"), reseal(c)),
        f"{TENSORS} cannot be read"),
    "block of another file": (lambda c: edit_block(c, file="elsewhere.safetensors"), "does not list"),
    "block out of its tensor": (lambda c: edit_block(c, stop=10**6), "part 64:1000000"),
    "block twice": (lambda c: edit_block(c, start=0, stop=64), "do not cover it once"),
    "block of another shape": (lambda c: edit_block(c, shape=[256, 32]), "disagree on its shape"),
    "block of a huge shape": (lambda c: edit_block(c, shape=[2**63, 32]), "shape must lie between"),
    "one rank's index not listed": (
        lambda c: edit_json(c / "manifest.json", lambda m: m["files"].pop("index-00001.json")), "do not cover it once"),
    "progress negative": (lambda c: edit_state(c, lambda s: s["progress"].update(step=-1)), "step"),
    "progress of another type": (lambda c: edit_state(c, lambda s: s["progress"].update(tokens="8")), "tokens"),
    "configuration with an unknown key": (
        lambda c: edit_state(c, lambda s: s["config"]["model"].update(layers=3)), "config.model.layers"),
    "pacing of nonsense": (lambda c: edit_state(c, lambda s: s.update(pacing=[3])), "state.json: pacing must be"),
    "growth of nonsense": (lambda c: edit_state(c, lambda s: s.update(growth={})), "state.json: growth"),
    "plan of an unknown mode": (lambda c: edit_state(c, lambda s: s["plan"].update(mode="x")), "plan.mode must be"),
    "optimizer steps of another type": (
        lambda c: edit_state(c, lambda s: s.update(optimizer_steps=True)), "state.json: optimizer_steps must be"),
    "a loss scale that sets anything": (
        lambda c: edit_state(c, lambda s: s.update(loss_scaler={"backward": 1})), "loss_scaler must be an object with"),
    "a loss scale of text": (
        lambda c: edit_state(c, lambda s: s.update(loss_scaler={"cur_scale": "1"})), "loss_scaler.cur_scale"),
    "dataset of nonsense": (lambda c: edit_state(c, lambda s: s.update(dataset=[])), "dataset must be an object"),
    "a part of the state missing": (lambda c: edit_state(c, lambda s: s.pop("stability")), "state.json: must have"),
    "plan with a hole": (lambda c: edit_state(c, lambda s: s["plan"].update(runs=[])), "plan.runs is empty"),
    "state with a key too many": (lambda c: edit_state(c, lambda s: s.update(extra=1)), "state.json: must have"),
    "progress not a number": (
        lambda c: (replace_text(c / "state.json", '"step": 4', '"step": NaN'), reseal(c)), "state.json NaN is not"),
    "progress infinite": (
        lambda c: (replace_text(c / "state.json", '"step": 4', '"step": 1e999'), reseal(c)), "too large"),
    "progress of a thousand digits": (
        lambda c: (replace_text(c / "state.json", '"step": 4', '"step": 1' + "0" * 999), reseal(c)), "too large"),
    "a key twice in the manifest": (
        lambda c: replace_text(c / "manifest.json", '"files":', '"files": {}, "files":'), "stands twice"),
    "a key twice in the index": (
        lambda c: (replace_text(c / "index-00001.json", '"blocks":', '"blocks": {}, "blocks":'), reseal(c)),
        "index-00001.json \"blocks\" stands twice"),
    "nested without end": (
        lambda c: ((c / "state.json").write_text("[" * 10**6), reseal(c)), "nested too deeply"),
    "state not UTF-8": (lambda c: ((c / "state.json").write_bytes(b"\xff\xfe{}"), reseal(c)), "not UTF-8"),
    "state a list": (lambda c: ((c / "state.json").write_text("[]"), reseal(c)), "state.json"),
    "manifest a pipe": (
        lambda c: ((c / "manifest.json").unlink(), os.mkfifo(c / "manifest.json")), "has no manifest.json"),
    "tensors a pipe": (lambda c: ((c / TENSORS).unlink(), os.mkfifo(c / TENSORS)), TENSORS),
    "tensors a directory": (lambda c: ((c / TENSORS).unlink(), (c / TENSORS).mkdir()), TENSORS),
    "manifest lists itself": (
        lambda c: edit_json(
            c / "manifest.json", lambda m: m["files"].update({"manifest.json": m["files"]["state.json"]})),
        "not a plain file name"),
    "file name of the root": (
        lambda c: edit_json(
            c / "manifest.json", lambda m: m["files"].update({"/etc/passwd": m["files"]["state.json"]})),
        "not a plain file name"),
    "a huge size": (
        lambda c: edit_json(c / "manifest.json", lambda m: m["files"]["state.json"].update(bytes=2**63)),
        "state.json.bytes must lie between"),
    "SHA-256 of letters": (
        lambda c: edit_json(c / "manifest.json", lambda m: m["files"]["state.json"].update(sha256="Z" * 64)),
        "state.json.sha256 is not a SHA-256"),
    "header of another dtype": (
        lambda c: edit_header(c, lambda h, key: h[key].update(dtype="I32")), f"{TENSORS}: {KEY} is I32"),
    "header of another shape": (
        lambda c: edit_header(c, lambda h, key: h[key].update(shape=[32, 64])), f"{TENSORS}: {KEY} is F32"),
    "header with offsets beyond the file": (
        lambda c: edit_header(c, lambda h, key: h[key].update(data_offsets=[0, 2**62])), f"{TENSORS} cannot be read"),
    "header of a shape that overflows": (
        lambda c: edit_header(c, lambda h, key: h[key].update(shape=[2**62, 2**62])), f"{TENSORS} cannot be read"),
    "header without the tensor": (
        lambda c: edit_header(c, lambda h, key: h.update({"other": h.pop(key)})), f"{TENSORS} cannot be read"),
    "plan that ends before it begins": (
        lambda c: edit_state(c, lambda s: s["plan"].update(total_steps=0)), "plan.total_steps must lie between"),
    "plan with steps out of order": (
        lambda c: edit_state(c, lambda s: s["plan"]["runs"].reverse()), "state.json: plan.runs[0].first_step"),
    "plan with a length beyond the full": (
        lambda c: edit_state(c, lambda s: s["plan"]["runs"][0].__setitem__(1, 10**6)), "plan.runs[0].seq_len"),
    "stability that counts more than it saw": (
        lambda c: edit_state(c, lambda s: s["stability"].update(spikes=9)), "stability counts"),
}  # fmt: skip


DAMAGE_OF_A_RUN = {
    "another model": ("weight/layers.0.mlp.dense_h_to_4h.weight", (256, 32)),
    "another optimizer": ("momentum_buffer/layers.0.mlp.dense_h_to_4h.weight", (128, 32)),
}


@pytest.mark.fault(7)
@pytest.mark.parametrize("kind", DAMAGE_OF_A_RUN)
def test_another_runs_tensors_are_refused(saved: Path, kind: str) -> None:
    key, shape = DAMAGE_OF_A_RUN[kind]
    with pytest.raises(ConfigError, match=f"step_000004: {key}"):
        Checkpoint(saved / "step_000004").tensor(key, Shard(key, shape))


def read_everything(checkpoint: Path) -> None:
    opened = Checkpoint(checkpoint)
    opened.verify()
    assert opened.progress.step == 4, "not the checkpoint that was damaged"
    for key in opened.blocks:
        opened.tensor(key)


@pytest.mark.fault(7)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_named(saved: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(saved, tmp_path / "checkpoints")
    checkpoint = tmp_path / "checkpoints" / "step_000004"
    read_everything(checkpoint)
    damage, message = DAMAGE[kind]
    damage(checkpoint)
    with pytest.raises(ConfigError) as error:
        read_everything(checkpoint)
    text = str(error.value)
    assert message in text, text
    assert "\n" not in text, "more than one line"


def test_the_message_names_a_checkpoint_to_go_on_from(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "checkpoints")
    flip(tmp_path / "checkpoints" / "step_000004" / TENSORS, 5000)
    with pytest.raises(ConfigError, match=r"step_000002 is complete: to go on from it, move step_000004"):
        Checkpoint(tmp_path / "checkpoints" / "step_000004").verify()


def test_a_step_without_a_manifest_is_not_the_latest(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in ("step_000006", "step_000008"):
        shutil.copytree(folder / "step_000004", folder / f"{step}.writing")
    os.truncate(folder / "step_000008.writing" / TENSORS, 1000)
    shutil.copytree(folder / "step_000002", folder / "step_000001.deleting")
    (folder / "step_000004" / "manifest.json").unlink()
    assert latest_checkpoint(folder) == folder / "step_000002"
    remove_debris(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["step_000002", "step_000004", "step_000006"]


def test_a_replaced_checkpoint_survives_a_kill_between_the_renames(saved: Path, tmp_path: Path) -> None:
    """A step saved a second time: for a moment no checkpoint has its name."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved / "step_000004", folder / "step_000004.deleting")
    shutil.copytree(saved / "step_000004", folder / "step_000004.writing")
    remove_debris(folder)
    assert [p.name for p in folder.iterdir()] == ["step_000004"]
    read_everything(folder / "step_000004")


def test_retention_keeps_what_was_just_saved(saved: Path, tmp_path: Path) -> None:
    """Also where later ones lie beside it."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved / "step_000004", folder / "step_000004")
    shutil.copytree(saved / "step_000002", folder / "step_000002.writing")
    (folder / "step_000002.writing" / "manifest.json").unlink()
    records = {path.name: file_record(path) for path in (folder / "step_000002.writing").iterdir()}
    commit(folder / "step_000002.writing", folder / "step_000002", records, keep_last=1)
    assert [p.name for p in folder.iterdir()] == ["step_000002"]


def test_what_was_measured_is_saved(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "step_000004"
    shutil.copytree(saved / "step_000004", copy)
    measured = Stability().after(4.0, 0.1).after(8.0, 0.7)
    edit_state(copy, lambda state: state.update(stability=measured.to_json()))
    assert Checkpoint(copy).stability == measured
    edit_state(copy, lambda state: state.update(stability={"steps": 3}))
    with pytest.raises(ConfigError, match="step_000004: state.json: stability must be an object"):
        Checkpoint(copy)
