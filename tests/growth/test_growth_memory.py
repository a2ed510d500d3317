"""Growing a gigabyte holds no more than a few tensors: 3 x the largest, and 300 MB of Python and torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_slw.data.writer import IndexedDatasetWriter
from megatron_slw.testing import tiny_config, write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VOCAB, HIDDEN = 24_000, 512
RUNNER = """
import sys
from tools.grow_checkpoint import main
status = main(sys.argv[1:])
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
sys.exit(status)
"""


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    """With verification."""
    if shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip(f"{tmp_path} has less than 4 GB left")
    with IndexedDatasetWriter(tmp_path / "data", np.dtype(np.uint16)) as writer:
        writer.add_document(np.random.default_rng(0).integers(0, VOCAB, 4_000))
        writer.finish()
    config = tiny_config(
        tmp_path, model__num_layers=3, model__hidden_size=HIDDEN, model__num_attention_heads=8, model__seq_length=64,
        model__vocab_size=VOCAB, curriculum=None,
    )  # fmt: skip
    load = write_random_checkpoint(config, tmp_path / "small" / "checkpoints", 3)
    save = tmp_path / "large" / "checkpoints" / "step_000003"
    command = [sys.executable, "-c", RUNNER, "--load", str(load), "--save", str(save), "--depth", "2", "--width", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    size = sum(file.stat().st_size for file in save.iterdir())
    shutil.rmtree(tmp_path / "large")
    shutil.rmtree(tmp_path / "small")
    assert size > 1e9
    peak, largest = int(done.stdout.split()[-1]) * 1024, 4 * VOCAB * 2 * HIDDEN
    assert peak < 3 * largest + 300e6, f"{peak / 1e6:.0f} MB"
