"""Grow a checkpoint in depth and width with its whole training state: one in, a larger one out, the same loss.

    python tools/grow_checkpoint.py --load runs/small/checkpoints/step_004449 \\
        --save runs/large/checkpoints/step_004449 --depth 2 --width 2

Weights, moments, step, schedule and progress grow; the new configuration is written to runs/large/ds_config.json, with
which pretrain_gpt.py goes on at any layout. The method and its limits: docs/growth.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; the exit status: 0, 1 if the result is not the same model, 2 for wrong input."""
    import torch

    from megatron_slw.growth import allocator, display, flags, grow

    command = flags.parse(sys.argv[1:] if argv is None else argv, __doc__ or "")
    try:
        growth = flags.plan(command)
        print(display.headline(growth))
        for warning in display.warnings(growth):
            print(f"warning: {warning}", file=sys.stderr)
        torch.set_num_threads(1)  # the files are what is done in parallel
        allocator.return_large_blocks()
        with display.progress_bar(growth.tensors.shapes) as done:
            result = grow.run(growth, command.common.workers, done)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except grow.GrowthError as error:
        print(error, file=sys.stderr)
        return 1
    if result is not None:
        print(display.verdict(result))
    print(f"saved {growth.save}; go on with: pretrain_gpt.py --ds-config {grow.config_path(growth)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
