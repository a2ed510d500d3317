"""Measure where a model should grow, and where the larger one goes on, on your own runs: tau and rho.

    python tools/calibrate_growth.py --small ds_small.json --target ds_target.json --output runs/calibration
    python tools/calibrate_growth.py --small runs/small --target runs/target --output runs/calibration

A file is trained, the larger model no further than to the small one's last loss; a run directory is read. The result
is printed, and written to OUTPUT/calibration.json, which plan_growth.py --calibration takes. Killed at any moment, the
same command goes on where it was.

Exit status: 0 calibrated, or stopped by a signal; 1 nothing is gained by growing, or a run failed; 2 wrong input.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.argument_types import share
from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.planner.points import SHARE_LEFT_OUT
from megatron_slw.train.calibrate_run import CalibrationError, check_pair, read_side, train_both
from megatron_slw.train.calibrate_session import announcement, judge
from megatron_slw.train.child_process import Interrupted

TRAINER = str(Path(__file__).resolve().parents[1] / "pretrain_gpt.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status."""
    args, overrides = parser().parse_known_args(argv)
    try:
        small, target = (
            read_side(name, getattr(args, name), args.output, overrides, args.world_size)
            for name in ("small", "target")
        )
        check_pair(small, target)
        print(announcement(small, target), flush=True)
        if args.dry_run:
            return 0
        train_both(small, target, args.output, [*shlex.split(args.launcher), TRAINER], partial(print, flush=True))
        return judge(small, target, args.output, args.leave_out, print)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except CalibrationError as error:
        print(f"{error}\nThe same command tries it again.", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop)
        return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        description=__doc__,
        epilog="Any setting of the files can be overridden, as for training: --optimizer.params.lr=1e-3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--small", type=Path, required=True, metavar="FILE|RUN", help="the small model: its JSON file, or its run")
    add("--target", type=Path, required=True, metavar="FILE|RUN", help="the larger model, as different as it grows")
    add("--output", type=Path, required=True, metavar="DIR", help="gets the runs that are trained, and the result")
    add("--launcher", default=shlex.quote(sys.executable), help="what starts a run (default: one process)")
    add("--world-size", type=int, default=1, help="ranks that the launcher starts")
    add("--leave-out", type=share, default=SHARE_LEFT_OUT, help="of each curve's tokens at its beginning (default 1/8)")
    add("--dry-run", action="store_true", help="print what would be trained and its cost; train nothing")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
