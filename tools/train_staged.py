"""Train in stages: a small model, grown, trained on, grown again; resumable at any moment.

    python tools/train_staged.py STAGES.json --launcher "deepspeed --num_gpus 8"

STAGES.json names a configuration, a directory and the stages; each ends at a step, after some tokens, at the end of its
plan, or at its growth point ("auto"). Sequence-length warmup goes on inside and across the stages, as the configuration
has it. Killed at any moment, the same command goes on where it was. The format: docs/growth.md.

Exit status: 0 trained, or stopped by a signal; 1 a stage or a growth failed; 2 wrong input.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.train.child_process import Interrupted
from megatron_slw.train.staged_file import read_stages
from megatron_slw.train.staged_run import StageError, announcement, train_staged

TRAINER = str(Path(__file__).resolve().parents[1] / "pretrain_gpt.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status."""
    args = parser().parse_args(argv)
    try:
        run = read_stages(args.stages, args.world_size)
        print(announcement(run), flush=True)
        if not args.dry_run:
            train_staged(run, [*shlex.split(args.launcher), TRAINER], args.workers, partial(print, flush=True))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except StageError as error:
        print(f"{error}\nThe same command tries it again.", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = result.add_argument
    add("stages", type=Path, metavar="STAGES.json", help="the file that describes the stages")
    add("--launcher", default=shlex.quote(sys.executable), help="what starts a trainer (default: one process)")
    add("--world-size", type=int, default=1, help="ranks that the launcher starts")
    add("--workers", type=int, default=4, help="files that a growth reads and writes at a time (default 4)")
    add("--dry-run", action="store_true", help="print the stages and how far they are; train nothing")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
