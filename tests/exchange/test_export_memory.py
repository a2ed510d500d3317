"""An export holds a few tensors, not the model: 300 MB of weights, 17 MB the largest tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megatron_slw.testing import tiny_config, write_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = 1024
RUNNER = """
import resource, sys
import torch
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.exchange import export_gpt2, import_gpt2
from megatron_slw.growth import display
from tools.export_hf import main

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = main(sys.argv[1:])
print("more", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
sys.exit(status)
"""


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path, model__num_layers=6, model__hidden_size=HIDDEN, model__num_attention_heads=8, model__seq_length=64,
        curriculum=None,
    )  # fmt: skip
    load = write_random_checkpoint(config, tmp_path / "checkpoints", 3, kinds=("weight",))
    flags = ["--load", str(load), "--save", str(tmp_path / "out"), "--no-tokenizer"]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *flags], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 300e6
    more, largest = int(done.stdout.split()[-1]) * 1024, 4 * 4 * HIDDEN * HIDDEN
    assert more < 4 * largest + 20e6, f"{more / 1e6:.0f} MB"
