"""Write a trained model as a Hugging Face GPT-2 folder, which AutoModelForCausalLM and AutoTokenizer load.

    python tools/export_hf.py --load runs/small/checkpoints/step_004449 --save exported/small

Weights are written tensor by tensor: a model of 1.5 billion parameters needs about a gigabyte of memory. See
docs/huggingface.md.
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
    from megatron_slw.exchange import export_gpt2, tokenizer_files
    from megatron_slw.exchange.new_run import ExchangeError
    from megatron_slw.growth.display import progress_bar

    try:
        checkpoint = Checkpoint(args.load)
        config = checkpoint.config
        if args.tokenizer:
            tokenizer = tokenizer_files.copied_files(args.tokenizer)
        elif args.no_tokenizer:
            tokenizer = ({}, 0, None)
        else:
            prefix = args.dataset or config.data.corpora[0].prefix
            tokenizer = tokenizer_files.tokenizer_files(prefix, args.tokenizer_dir, config.model.seq_length)
        export = export_gpt2.plan_export(
            checkpoint, Path(args.save), args.dtype, tokenizer, args.shard_mb * 10**6
        )
        with progress_bar(export.tensors.shapes, export.kind.dtype.itemsize) as done:
            export_gpt2.run(export, args.workers, done)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ExchangeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"saved {export.save}: {', '.join(sorted(path.name for path in export.save.iterdir()))}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--load", required=True, help="a checkpoint: .../checkpoints/step_004449")
    add("--save", required=True, help="the folder to make")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    add("--dataset", help="dataset whose sidecar names the tokenizer (default: the checkpoint's data.path)")
    add("--tokenizer-dir", help="folder of the tokenizer's file (default: beside the dataset)")
    add("--tokenizer", metavar="FOLDER", help="copy the tokenizer's files of this Hugging Face folder instead")
    add("--no-tokenizer", action="store_true", help="the model alone")
    add("--shard-mb", type=positive, default=5000, metavar="MB", help="largest file of weights (default: 5000)")
    add("--workers", type=positive, default=2, help="files at a time (default: 2)")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
