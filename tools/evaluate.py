"""Judge a trained model by text it has not seen: WikiText, LAMBADA, or any text.

    python tools/evaluate.py --load runs/quickstart/grown/checkpoints/step_000640 --data held_out.jsonl
    torchrun --nproc-per-node 4 tools/evaluate.py --load ... --task lambada --data lambada_openai.jsonl --tensor 2

A checkpoint of any layout is read into any other: processes that --tensor and --pipeline do not take are data-parallel.
The formulas are in docs/evaluating.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.argument_types import positive
from megatron_slw.config.errors import ConfigError, validate
from megatron_slw.config.schema import ParallelConfig, TaskConfig
from megatron_slw.parallel.launch import read_launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for wrong input."""
    args = parser().parse_args(argv)
    launch = read_launch()
    from megatron_slw.evaluation import display, job  # imports torch: --help answers at once

    given: dict[str, Any] = {name: getattr(args, name) for name in ("data", "limit", "stride", "json_key")}
    try:
        task = validate(TaskConfig, {"task": args.task, "detokenize": not args.as_written, **given}, "")
        layout = ParallelConfig(tensor=args.tensor, pipeline=args.pipeline)
        where = {name: getattr(args, name) for name in ("precision", "rows", "dataset", "tokenizer_dir", "device")}
        figures = job.evaluate(job.Request(args.load, task, layout, **where), launch)
        if launch.rank == 0:
            if args.output:
                job.write_result(args.output, figures)
            print(json.dumps(figures) if args.json else display.table(figures))
    except ConfigError as error:
        if launch.rank == 0:
            print(error, file=sys.stderr)
        return 2
    finally:
        job.leave()
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--load", required=True, help="a checkpoint: .../checkpoints/step_000600")
    add("--data", required=True, help=".jsonl (one object a line) or .txt")
    add("--task", choices=("text", "wikitext", "lambada"), default="text", help="what the file is (default: text)")
    add("--stride", type=positive, help="labels a window scores (default: the full length, no overlap)")
    add("--as-written", action="store_true", help="wikitext: score the tokens as they stand, not the text they were")
    add("--limit", type=positive, help="only so many articles, examples or documents")
    add("--json-key", help="key of the text in a .jsonl (default: text; wikitext: page)")
    add("--dataset", help="dataset whose sidecar names the tokenizer (default: the checkpoint's data.path)")
    add("--tokenizer-dir", help="folder of the tokenizer's file (default: beside the dataset)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of weights and arithmetic (default: fp32)")
    add("--tensor", type=positive, default=1, help="tensor-parallel size, under a launcher (default: 1)")
    add("--pipeline", type=positive, default=1, help="pipeline stages, under a launcher (default: 1)")
    add("--rows", type=positive, help="of full length at once (default: a micro-batch in training)")
    add("--device", help="cpu or cuda, without a launcher (default: cuda where there is one)")
    add("--json", action="store_true", help="print one JSON object")
    add("--output", metavar="FILE", help="write that object to a file too, as runs/x/evaluation/lambada.json")
    add("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return result


if __name__ == "__main__":
    status = main()
    print(end="", flush=True)
    os._exit(status)  # a gloo thread may outlive the interpreter's shutdown and abort it
