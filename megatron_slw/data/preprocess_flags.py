"""The command line of preprocessing: flags with the names they have in Megatron."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from megatron_slw.data.encode import ON_ERROR
from megatron_slw.data.preprocess import PreprocessSettings
from megatron_slw.data.tokenizer import BACKENDS, TOKENIZER_TYPES, TokenizerSpec

DEFAULT_SHUFFLE_SEED = 1234


def parse(argv: Sequence[str] | None, description: str | None) -> PreprocessSettings:
    """The settings that the command line `argv` asks for; ends the process as argparse does where it is wrong."""
    args = parser(description).parse_args(argv)
    return PreprocessSettings(
        inputs=tuple(args.input),
        output_prefix=args.output_prefix,
        tokenizer=TokenizerSpec(
            args.tokenizer_type, args.vocab_file, args.merge_file, args.tokenizer_model, args.backend
        ),
        json_keys=tuple(args.json_keys),
        append_eod=args.append_eod,
        workers=args.workers,
        on_error=args.on_error,
        split_on_blank_lines=args.split_on_blank_lines,
        shuffle_seed=args.shuffle_seed if args.shuffle_documents else None,
    )


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """All flags."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_input_flags(result)
    _add_tokenizer_flags(result)
    add = result.add_argument
    add("--output-prefix", required=True, help="what the paths of the files begin with")
    add("--shuffle-documents", action="store_true", help="write the documents in a random order")
    add("--shuffle-seed", type=int, default=DEFAULT_SHUFFLE_SEED, help="of that order (default: %(default)s)")
    add(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes (default: one for each core; under mpirun every rank but the first is one)",
    )
    return result


def _add_input_flags(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group("input").add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        help=".jsonl (an object a line) and .txt (a document a file), also .gz or .zst; .parquet; folders, patterns, "
        "- for JSON lines on standard input",
    )
    add("--json-keys", nargs="+", default=["text"], help="keys of the text; a dataset for each (default: text)")
    add("--split-on-blank-lines", action="store_true", help="a .txt is documents with blank lines between them")
    add(
        "--on-error",
        choices=ON_ERROR,
        default="fail",
        help="what to do with a document that cannot be used; replace puts U+FFFD for bytes that are not UTF-8 and "
        "skips the rest (default: fail)",
    )


def _add_tokenizer_flags(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group("tokenizer").add_argument
    add("--tokenizer-type", required=True, choices=TOKENIZER_TYPES)
    add("--vocab-file", help="vocab.json or encoder.json, for GPT2BPETokenizer")
    add("--merge-file", help="merges.txt or vocab.bpe, for GPT2BPETokenizer")
    add(
        "--tokenizer-model",
        help="tokenizer.json, SentencePiece .model, a tiktoken encoding's name or .tiktoken rank file",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="gigatoken: the same ids many times faster, where that package is installed (default: %(default)s)",
    )
    add("--append-eod", action="store_true", help="end every document with the end-of-document token")
