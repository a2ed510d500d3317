"""Time and peak memory of growing a checkpoint of a gigabyte and more, beside dd copying as many bytes.

    python benchmarks/grow_checkpoint.py [--json FILE] [--folder DIR]

Random tensors in the place of a trained model: 3 layers x 512 becomes 6 layers x 1024. The tool runs as a process of
its own, as a person starts it, and takes turns with dd, which copies the grown checkpoint's files and fsyncs each.
Both write to the same disk. `grow` is the time from the first byte read to the last fsync and rename, `process` that
of the whole command with its imports; the last line has the verification too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import numpy as np
import torch

from megatron_slw.data.writer import IndexedDatasetWriter
from megatron_slw.testing import tiny_config, write_random_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STEP = 10
RUNNER = """
import sys, time
from tools import grow_checkpoint
from megatron_slw.growth import grow
original = grow.run
def timed(*args):
    began = time.perf_counter()
    result = original(*args)
    print("grow", time.perf_counter() - began)
    return result
grow.run = timed
status = grow_checkpoint.main(sys.argv[1:])
print("peak", open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
sys.exit(status)
"""


def make_checkpoint(folder: Path, vocab_size: int) -> Path:
    """A checkpoint of 3 layers x 512 with a dataset, as a run leaves them."""
    config = tiny_config(
        folder, model__num_layers=3, model__hidden_size=512, model__num_attention_heads=8, model__seq_length=1024,
        model__vocab_size=vocab_size, training__train_steps=100, curriculum=None,
    )  # fmt: skip
    with IndexedDatasetWriter(folder / "data", np.dtype(np.uint16)) as writer:
        writer.add_document(np.random.default_rng(0).integers(0, vocab_size, 20_000))
        writer.finish()
    return write_random_checkpoint(config, folder / "small" / "checkpoints", STEP)


def grow(load: Path, save: Path, *flags: str) -> dict[str, float]:
    """Run the tool; its times in seconds and its peak in MB."""
    command = [
        sys.executable,
        "-c",
        RUNNER,
        "--load",
        str(load.resolve()),
        "--save",
        str(save.resolve()),
        "--depth",
        "2",
        "--width",
        "2",
    ]
    began = time.perf_counter()
    done = subprocess.run([*command, *flags], cwd=ROOT, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    found = dict(re.findall(r"^(grow|peak) ([0-9.]+)$", done.stdout, flags=re.M))
    return {"process_s": seconds, "grow_s": float(found["grow"]), "peak_mb": float(found["peak"]) / 1024}


def copy_with_dd(checkpoint: Path, folder: Path) -> float:
    """Seconds in which dd copies every file and fsyncs it."""
    folder.mkdir()
    began = time.perf_counter()
    for file in sorted(checkpoint.iterdir()):
        command = ["dd", f"if={file}", f"of={folder / file.name}", "bs=4M", "conv=fsync", "status=none"]
        subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--folder", type=Path, help="where the files go; needs three times the grown checkpoint")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        load = make_checkpoint(folder, args.vocab_size)
        rows = []
        for number in range(args.rounds):
            save = folder / f"large{number}" / "checkpoints" / f"step_{STEP:06d}"
            row = grow(load, save, "--no-verify")
            row["dd_s"] = copy_with_dd(save, folder / "copy")
            if number < args.rounds - 1:
                shutil.rmtree(save.parent)
            rows.append(row)
        sizes = sum(file.stat().st_size for file in save.iterdir())
        blocks = json.loads((save / "index-00000.json").read_text())["blocks"].values()
        largest = max(4 * prod(block["shape"]) for block in blocks)
        shutil.rmtree(save.parent)
        verified = grow(load, folder / "v" / "checkpoints" / f"step_{STEP:06d}")
    result = {
        "benchmark": "grow_checkpoint", "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(), "torch": torch.__version__, "bytes": sizes, "largest_tensor_mb": largest / 1e6,
        "memory_bound_mb": 3 * largest / 1e6 + 300, "rounds": rows,
        "grow_over_dd": statistics.median(row["grow_s"] / row["dd_s"] for row in rows),
        "peak_mb": max(row["peak_mb"] for row in rows), "with_verify": verified,
    }  # fmt: skip
    print(f"{sizes / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB")
    for row in rows:
        print("  ".join(f"{key} {value:8.2f}" for key, value in row.items()))
    print(f"grow / dd {result['grow_over_dd']:.2f}")
    print(f"peak {result['peak_mb']:.0f} MB of {result['memory_bound_mb']:.0f}")
    print(f"with verification: {verified}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
