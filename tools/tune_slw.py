"""Find the start length and the duration of a sequence-length warmup by short probe runs.

    python tools/tune_slw.py --ds-config ds_slw.json --output runs/tuning --launcher "deepspeed --num_gpus 8"

Every probe is the run of the file, with another schedule, stopped after its first steps. The result is printed, and
written to OUTPUT/ds_slw.json. Killed at any moment, the same command goes on where it was.

Exit status: 0 chosen, or stopped by a signal; 1 nothing was stable, or a probe failed; 2 wrong input.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.tuning import LIMIT
from megatron_slw.train.child_process import Interrupted
from megatron_slw.train.tune_display import TuneDisplay, announcement, conclusion, possible_probes
from megatron_slw.train.tune_job import SAMPLES, TuneJob, tune_job
from megatron_slw.train.tune_probe import ProbeError
from megatron_slw.train.tune_session import CHOSEN_NAME, tune

TRAINER = str(Path(__file__).resolve().parents[1] / "pretrain_gpt.py")

def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status."""
    args, overrides = parser().parse_known_args(argv)
    try:
        job = tune_job(args.ds_config, overrides, args.world_size, args.probe_steps, args.samples, args.limit)
        print(announcement(job), flush=True)
        if args.dry_run:
            print(possible_probes(job))
            return 0
        return _tune(job, Path(args.output), shlex.split(args.launcher))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ProbeError as error:
        print(f"{error}\nThe same command tries it again.", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop)
        return 0


def _tune(job: TuneJob, output: Path, launcher: Sequence[str]) -> int:
    results, choice = tune(job, output, [*launcher, TRAINER], TuneDisplay(job, sys.stdout))
    print(f"\n{conclusion(job, results, choice)}")
    if choice.probe is not None:
        print(f"\nThe whole file is {output / CHOSEN_NAME}.")
    return 0 if choice.probe is not None else 1


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        description=__doc__,
        epilog="Any setting of the file can be overridden, as for training: --optimizer.params.lr=1e-3",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = result.add_argument
    add("--ds-config", required=True, metavar="FILE", help="the JSON file that describes the run")
    add("--output", required=True, metavar="DIR", help="where the tuning keeps its state, its probes and its result")
    add("--launcher", default=shlex.quote(sys.executable), help="what starts a probe (default: one process)")
    add("--world-size", type=int, default=1, help="ranks that the launcher starts")
    add("--probe-steps", type=int, metavar="N", help="length of a probe (default: 10/3 of the learning-rate warmup)")
    add("--samples", type=int, default=SAMPLES, metavar="N", help=f"windows of a validation (default: {SAMPLES})")
    add("--limit", type=float, default=LIMIT, help=f"perplexity over the best that is a fluctuation (default: {LIMIT})")
    add("--dry-run", action="store_true", help="print the probes there may be and their cost; train nothing")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
