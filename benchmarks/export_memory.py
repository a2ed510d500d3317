"""Peak memory of tools/export_hf.py on a model of 1.5 billion parameters, in a process of its own.

    python benchmarks/export_memory.py [--json FILE] [--folder WITH_14_GB]

The checkpoint is made of random weights first. The peak is the resident memory that the kernel counts for the child,
Python and torch included.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megatron_slw.testing import tiny_config, write_random_checkpoint
from megatron_slw.train.estimate import parameters

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Print the figure; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--hidden", type=int, default=1600)
    parser.add_argument("--heads", type=int, default=25)
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder of temporary files)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        config = tiny_config(
            folder, model__num_layers=args.layers, model__hidden_size=args.hidden,
            model__num_attention_heads=args.heads, model__seq_length=1024, model__vocab_size=50257, curriculum=None,
        )  # fmt: skip
        load = write_random_checkpoint(config, folder / "checkpoints", 1, kinds=("weight",))
        flags = ["--load", str(load), "--save", str(folder / "exported"), "--no-tokenizer"]
        began = time.perf_counter()
        subprocess.run([sys.executable, "tools/export_hf.py", *flags], cwd=ROOT, check=True)
        seconds = time.perf_counter() - began
        written = sum(path.stat().st_size for path in (folder / "exported").iterdir())
    result = {
        "benchmark": "export_memory", "machine": platform.processor() or platform.machine(),
        "parameters": parameters(config.model), "exported_bytes": written, "seconds": seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }  # fmt: skip
    print(
        f"{result['parameters'] / 1e6:,.0f} M parameters, {written / 1e9:.1f} GB exported in {seconds:.0f} s, "
        f"peak {result['peak_bytes'] / 1e9:.2f} GB"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
