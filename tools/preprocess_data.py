"""Turn text into a token dataset: PREFIX_KEY_document.bin, .idx and .json for each JSON key.

    python tools/preprocess_data.py --input corpus.jsonl --output-prefix data/corpus \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer.json --append-eod
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.throughput import ThroughputReport, summary
from megatron_slw.data.tokenizer import TOKENIZER_TYPES, TokenizerSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, 2 for wrong input, 130 when interrupted."""
    args = parser().parse_args(argv)
    spec = TokenizerSpec(args.tokenizer_type, args.vocab_file, args.merge_file, args.tokenizer_model)
    settings = PreprocessSettings(
        tuple(args.input), args.output_prefix, spec, tuple(args.json_keys), args.append_eod, args.workers
    )
    start = time.monotonic()
    try:
        with ThroughputReport() as report:
            sidecars = preprocess(settings, report)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written.", file=sys.stderr)
        return 130
    for key, sidecar in sidecars.items():
        print(summary(f"{args.output_prefix}_{key}_document", sidecar, time.monotonic() - start))
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags, with the names they have in Megatron."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        help=".jsonl, .jsonl.gz (an object a line) or .txt (a document a file)",
    )
    add("--output-prefix", required=True, help="what the paths of the files begin with")
    add(
        "--json-keys",
        nargs="+",
        default=["text"],
        help="keys of the text; a dataset for each (default: text)",
    )
    add("--tokenizer-type", required=True, choices=TOKENIZER_TYPES)
    add("--vocab-file", help="vocab.json or encoder.json, for GPT2BPETokenizer")
    add("--merge-file", help="merges.txt or vocab.bpe, for GPT2BPETokenizer")
    add("--tokenizer-model", help="tokenizer.json, SentencePiece .model, or a tiktoken encoding's name")
    add("--append-eod", action="store_true", help="end every document with the end-of-document token")
    add(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: one for each core)",
    )
    return result


if __name__ == "__main__":
    raise SystemExit(main())
