"""Make a checkpoint from a Hugging Face GPT-2 folder (config.json, safetensors), to train it further.

    python tools/import_hf.py --load gpt2 --save runs/tuned/checkpoints/step_000000 \\
        --ds-config examples/ds_slw.json --data.path=data/mine_text_document
    deepspeed pretrain_gpt.py --ds-config runs/tuned/ds_config.json

The folder says the model's sizes, the JSON file everything else. A flag that is none of the above is a setting put
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

    from megatron_slw.exchange import import_gpt2  # imports torch: --help answers at once
    from megatron_slw.exchange.new_run import ExchangeError
    from megatron_slw.growth.display import progress_bar
    from megatron_slw.growth.sizes import describe
    from megatron_slw.train.estimate import parameters
    from megatron_slw.train.units import count_text

    try:
        job = import_gpt2.plan_import(args.load, Path(args.save), args.ds_config, overrides)
        model = job.new_run.config.model
        print(f"{job.folder.path}: {describe(model)} ({count_text(parameters(model))})")
        with progress_bar(job.tensors.shapes) as done:
            import_gpt2.run(job, args.workers, done)
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
    add("--load", required=True, help="folder with config.json and model.safetensors, whole or in shards")
    add("--save", required=True, help="the checkpoint to make: .../checkpoints/step_000000")
    add("--ds-config", required=True, help="JSON file of the run that begins with it; its model sizes are replaced")
    add("--workers", type=positive, default=2, help="files at a time (default: 2)")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
