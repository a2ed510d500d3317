"""Show what is in a checkpoint: progress, model, tensors, sizes, configuration, and whether every byte is in order.

    python tools/inspect_checkpoint.py runs/small/checkpoints/step_004449 --verify
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for a checkpoint that is damaged or missing."""
    args = parser().parse_args(argv)

    from megatron_slw.checkpoint.inspection import describe, render, verify  # imports torch: --help answers at once
    from megatron_slw.checkpoint.load import Checkpoint

    try:
        checkpoint = Checkpoint(args.load)
        verified = verify(checkpoint) if args.verify else None
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({**describe(checkpoint), "verified": args.verify}))
        return 0
    print(render(checkpoint))
    if verified:
        print(f"\n{verified}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("load", help="a checkpoint: .../checkpoints/step_004449")
    add("--verify", action="store_true", help="read every byte: SHA-256 of each file, every tensor against the index")
    add("--json", action="store_true", help="print one JSON object")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
