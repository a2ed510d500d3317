"""Write a checkpoint, weights and Adam's moments, as DeepSpeed's universal one.

    python tools/export_deepspeed.py --load runs/small/checkpoints/step_004449 --save exported/small_universal

A DeepSpeed engine around transformers' GPT2LMHeadModel, with "checkpoint": {"load_universal": true}, goes on from it at
any of its layouts. See docs/huggingface.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.argument_types import positive
from megatron_slw.config.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; the exit status: 0, 1 for a file that cannot be written, 2 for wrong input."""
    args = parser().parse_args(argv)

    from megatron_slw.checkpoint.load import Checkpoint  # imports torch: --help answers at once
    from megatron_slw.exchange import export_universal
    from megatron_slw.exchange.new_run import ExchangeError
    from megatron_slw.growth.display import progress_bar

    try:
        export = export_universal.plan_export(Checkpoint(args.load), Path(args.save), args.names)
        with progress_bar(export.shapes) as done:
            export_universal.run(export, args.workers, done)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ExchangeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"saved {export.save}; load it with engine.load_checkpoint({str(export.save)!r})")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--load", required=True, help="a checkpoint: .../checkpoints/step_004449")
    add("--save", required=True, help="the folder to make")
    add(
        "--names", choices=("transformers", "megatron_slw"), default="transformers",
        help="of the parameters: GPT2LMHeadModel's (default), or this program's own model's",
    )  # fmt: skip
    add("--workers", type=positive, default=2, help="files at a time (default: 2)")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
