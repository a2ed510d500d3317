"""Pretrain a GPT: `deepspeed pretrain_gpt.py --ds-config FILE`, or under torchrun, or as one process with python.

Exit status: 0 trained to the end, or saved and left after SIGTERM, SIGUSR1, Ctrl-C or --stop-after; 1 the run failed (a
NaN, a full disk); 2 the configuration, the data or the checkpoint is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run or describe one training job; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Any setting of the file can be overridden: --model.num_layers=24",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--ds-config", required=True, metavar="FILE", help="the JSON file that describes the run")
    parser.add_argument("--dry-run", action="store_true", help="print layout, memory, plan and cost; train nothing")
    parser.add_argument("--json", action="store_true", help="print the dry run as one JSON object")
    parser.add_argument("--world-size", type=int, default=1, help="ranks to imagine in a dry run")
    parser.add_argument("--hostfile", metavar="FILE", help="of the deepspeed command: check it, imagine its ranks")
    parser.add_argument("--stop-after", type=int, metavar="STEP", help="save and leave after this step of the run")
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="go on by itself after N failures")
    parser.add_argument("--life-fd", type=int, help=argparse.SUPPRESS)  # of the parent that restarts
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    args, overrides = parser.parse_known_args(argv)
    if args.dry_run:
        from megatron_slw.report.dry_run import main as describe

        return describe(args.ds_config, overrides, args.world_size, args.json, args.hostfile)
    if args.max_restarts > 0 and args.life_fd is None:
        from megatron_slw.train.supervisor import main as restarted

        return restarted([sys.executable, *(sys.argv if argv is None else [__file__, *argv])], args.max_restarts)
    from megatron_slw.train.job import main as run  # imports torch and DeepSpeed: ten seconds that a dry run saves

    return run(args.ds_config, overrides, args.stop_after, args.life_fd)


if __name__ == "__main__":
    exit_status = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a log on a full disk does not make a finished run a failed one
            stream.flush()
    # Everything is closed and saved. A gloo thread that outlives the interpreter's shutdown aborts about one finished
    # rank in 35 ("terminate called without an active exception"), which launchers report as a failed job.
    os._exit(exit_status)
