"""Make a checkpoint from DeepSpeed's universal one of a GPT-2: weights, Adam's moments and its step.

    python -m deepspeed.checkpoint.ds_to_universal --input_folder out/global_step400 \\
        --output_folder out/global_step400_universal
    python tools/import_deepspeed.py --load out/global_step400_universal --save runs/on/checkpoints/step_000000 \\
        --ds-config mine.json

The JSON file says the run that begins, the model's sizes included. A flag that is none of the above is a setting put
over the file's. See docs/huggingface.md.
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
    args, overrides = parser().parse_known_args(argv)

    from megatron_slw.exchange import import_universal  # imports torch: --help answers at once
    from megatron_slw.exchange.new_run import ExchangeError
    from megatron_slw.growth.display import progress_bar

    try:
        job = import_universal.plan_import(args.load, Path(args.save), args.ds_config, overrides)
        with progress_bar(job.tensors.shapes) as done:
            import_universal.run(job, args.workers, done)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ExchangeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"saved {job.new_run.save}; go on with: pretrain_gpt.py --ds-config {job.new_run.config_path}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--load", required=True, help="a folder with latest_universal, or the folder that it names")
    add("--save", required=True, help="the checkpoint to make: .../checkpoints/step_000000")
    add("--ds-config", required=True, help="JSON file of the run that begins with it")
    add("--workers", type=positive, default=2, help="files at a time (default: 2)")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
