"""Every place where a file from elsewhere is read, as a function of the file: what hostile content is tried on.

Run as a script it tries the large and deep ones in a process with little memory: python doors.py FOLDER
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.skip_journal import read_journal
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.hostfile import read_hostfile
from megatron_slw.config.load import load_config
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.resume import load_state
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.evaluation.lambada import read_examples
from megatron_slw.evaluation.prompts import read_prompts
from megatron_slw.evaluation.text import read_documents
from megatron_slw.exchange import universal
from megatron_slw.exchange.model_folder import ModelFolder
from megatron_slw.exchange.tokenizer_files import copied_files
from megatron_slw.growth.planner.calibration import read_calibration
from megatron_slw.growth.planner.inputs import measured_stage
from megatron_slw.report.series import read_run
from megatron_slw.testing import tiny_config, write_random_checkpoint
from megatron_slw.train.staged_file import read_stages
from tests.data.token_datasets import write_dataset

MEMORY = 1 << 30
SPARSE = 3 << 30


def reseal(checkpoint: Path) -> None:
    """Make the manifest agree with the files, as whoever forges a checkpoint would."""
    layout.write_manifest(
        checkpoint, {p.name: layout.file_record(p) for p in checkpoint.iterdir() if p.name != layout.MANIFEST}
    )


def open_checkpoint(path: Path) -> None:
    if path.name != layout.MANIFEST and path.stat().st_size < SPARSE:
        reseal(path.parent)
    checkpoint = Checkpoint(path.parent)
    checkpoint.verify()
    for key in checkpoint.blocks:
        checkpoint.tensor(key)


def open_dataset(path: Path) -> None:
    dataset = IndexedDataset(path.with_suffix(""))
    _ = [dataset.tokens[:100].tolist(), dataset.sidecar]


def tokenizer(kind: str) -> Callable[[Path], None]:
    return lambda path: load_tokenizer(TokenizerSpec(kind, tokenizer_model=str(path))).encode_batch(["a b"]) and None


def vocabulary(path: Path) -> None:
    load_tokenizer(TokenizerSpec("GPT2BPETokenizer", str(path), str(path.with_name("merges.txt"))))


def merges(path: Path) -> None:
    load_tokenizer(TokenizerSpec("GPT2BPETokenizer", str(path.with_name("vocab.json")), str(path)))


DOORS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoint manifest": ("run/step_000004/manifest.json", open_checkpoint),
    "checkpoint state": ("run/step_000004/state.json", open_checkpoint),
    "checkpoint index": ("run/step_000004/index-00000.json", open_checkpoint),
    "checkpoint tensors": ("run/step_000004/tensors-00000-000.safetensors", open_checkpoint),
    "checkpoint skipped steps": ("run/skipped.json", lambda path: read_journal(path.parent)),
    "dataset index": ("data.idx", open_dataset),
    "dataset tokens": ("data.bin", open_dataset),
    "dataset sidecar": ("data.json", open_dataset),
    "preprocessing state": ("data.state", lambda path: load_state(path, {})),
    "tiktoken ranks": ("gpt2.tiktoken", tokenizer("TikTokenizer")),
    "SentencePiece": ("m.model", tokenizer("SentencePieceTokenizer")),
    "tokenizer.json": ("tokenizer.json", tokenizer("HuggingFaceTokenizer")),
    "vocab.json": ("vocab.json", vocabulary),
    "merges.txt": ("merges.txt", merges),
    "configuration": ("config.json", load_config),
    "stages": ("stages.json", read_stages),
    "hostfile": ("hostfile", lambda path: read_hostfile(str(path))),
    "Hugging Face settings": ("hf/config.json", lambda path: ModelFolder(path.parent)),
    "Hugging Face index": ("shards/model.safetensors.index.json", lambda path: ModelFolder(path.parent)),
    "Hugging Face weights": ("hf/model.safetensors", lambda path: ModelFolder(path.parent)),
    "Hugging Face pickle": ("pickled/pytorch_model.bin", lambda path: ModelFolder(path.parent)),
    "Hugging Face tokenizer": ("hf/tokenizer.json", lambda path: copied_files(str(path.parent))),
    "Hugging Face tokenizer settings": ("settings/tokenizer_config.json", lambda path: copied_files(str(path.parent))),
    "DeepSpeed tensor": ("ds/fp32.pt", lambda path: universal.read_tensor(path, (2, 2))),
    "DeepSpeed step": ("ds/step.pt", universal.read_step),
    "DeepSpeed latest": ("ds/latest_universal", lambda path: universal.find_folder(path.parent)),
    "report": ("page/metrics.jsonl", lambda path: read_run("a", path.parent)),
    "report scores": ("scores/evaluation/a.json", lambda path: read_run("a", path.parent.parent)),
    "growth plan": ("plan/metrics.jsonl", lambda path: measured_stage(str(path))),
    "growth plan's model": ("planned/config.json", lambda path: measured_stage(str(path.parent))),
    "prompts": ("prompts.jsonl", lambda path: read_prompts(str(path))),
    "evaluation text": ("text.jsonl", lambda path: list(read_documents(path))),
    "LAMBADA": ("lambada.jsonl", lambda path: list(read_examples(path))),
    "calibration": ("calibration.json", read_calibration),
}
"""Name: the file, and what reads it."""
ANY_BYTES = ("dataset tokens", "merges.txt")
"""Not refused for what they hold, as far as it fits the other files."""
UNREAD = ("preprocessing state", "dataset sidecar")
"""What is not of ours is left alone, and the work is done anew."""


def build(folder: Path) -> None:
    """The good neighbours that a hostile file needs to be reached."""
    config = tiny_config(folder)
    write_random_checkpoint(config, folder / "run", 4)
    write_dataset(folder / "data", [[1, 2, 3]] * 9)
    for name in ("hf", "shards", "pickled", "settings", "ds", "page", "scores/evaluation", "plan", "planned"):
        (folder / name).mkdir(parents=True)
    for name in ("shards", "pickled", "hf"):
        (folder / name / "config.json").write_text('{"model_type": "gpt2"}')
    vocab = {"a": 0, "b": 1, "ab": 2}
    for name in ("", "settings"):
        (folder / name / "vocab.json").write_text(json.dumps(vocab))
        (folder / name / "merges.txt").write_text("a b\n")
    step = {"step": 1, "loss": 4.0, "lr": 1e-3, "tokens": 10, "seq_len": 8, "flops": 10.0, "step_time_s": 1.0}
    for name in ("scores", "planned"):
        (folder / name / "metrics.jsonl").write_text(json.dumps(step) + "\n")


BOMBS: dict[str, Callable[[Path], object]] = {
    "nested lists": lambda path: path.write_text("[" * 200_000),
    "nested objects": lambda path: path.write_text('{"a":' * 100_000),
    "nested values of a record": lambda path: path.write_text(
        '{"step":1,"tokens":1,"text":' + "[" * 20_000 + "]" * 20_000 + "}\n" * 2
    ),
    "a number of 100,000 digits": lambda path: path.write_text('{"step": 1, "tokens": ' + "9" * 100_000 + "}\n" * 2),
    "a number of 400 digits": lambda path: path.write_text(
        '{"step":1,"loss":4.0,"lr":1,"seq_len":8,"prompt":1,"tokens":' + "9" * 400 + "}\n" * 2
    ),
    "infinity": lambda path: path.write_text(
        '{"step":1,"tokens":1,"loss":4.0,"lr":1,"flops":1,"seq_len":Infinity,"task":Infinity}\n' * 2
    ),
    "a name twice": lambda path: path.write_text('{"a": 1, "a": 2}'),
    "a million names": lambda path: path.write_text("{" + ",".join(f'"{i}":{i}' for i in range(1_000_000)) + "}"),
    "3 GB of nothing": lambda path: (path.write_bytes(b""), os.truncate(path, SPARSE)),
    "one line of 32 MB": lambda path: path.write_bytes(b"x" * 32_000_000),
}


def tried(name: str, folder: Path) -> str:
    """What a door says to the file that is there: `refused`, `taken`, or the exception that it should not let out."""
    file, read = DOORS[name]
    try:
        read(folder / file)
    except ConfigError as error:
        text = str(error)
        return "refused" if "\n" not in text and len(text) < 2000 else f"unreadable: {text[:300]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.300}"
    return "taken"


def main() -> int:
    """Every bomb at every door: prints what is wrong, and ends with the number tried."""
    folder = Path(sys.argv[1])
    build(folder)
    for name in DOORS:
        tried(name, folder)  # what is imported late is in memory now
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, -1))
    count = 0
    for name, (file, _) in DOORS.items():
        path = folder / file
        before = path.read_bytes() if path.exists() else None
        for bomb, place in BOMBS.items():
            if bomb == "3 GB of nothing" and name in ("evaluation text", "LAMBADA", "Hugging Face weights"):
                continue  # a document takes the memory of its length; weights are mapped, which is no memory
            place(path)
            print(f"at {name}: {bomb}", flush=True)
            said = tried(name, folder)
            print(f"end {said}", flush=True)
            count += 1
        path.unlink() if before is None else path.write_bytes(before)
    print(f"count {count}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
