"""Train a tokenizer on your own text: byte-level BPE (a tokenizer.json) or SentencePiece (a .model).

    python tools/train_tokenizer.py --input corpus.jsonl --vocab-size 8192 --output tokenizer.json
    python tools/train_tokenizer.py --type sentencepiece-bpe --input text/ --vocab-size 8192 --output mine.model
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.data.tokenizer_training import TRAINED_TYPES, train_byte_level_bpe, train_sentencepiece

_TITLES = dict(zip(TRAINED_TYPES, ("byte-level BPE", "SentencePiece BPE", "SentencePiece unigram"), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, 2 for wrong input, 130 when interrupted."""
    args = parser().parse_args(argv)
    start = time.monotonic()
    try:
        info = train(args)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written.", file=sys.stderr)
        return 130
    print(f"{args.output}  {_TITLES[args.type]}, {info.vocab_size:,} pieces  {time.monotonic() - start:.1f} s")
    return 0


def train(args: argparse.Namespace) -> TokenizerInfo:
    """Train and write what the flags ask for."""
    if args.type == "bpe":
        return train_byte_level_bpe(args.input, args.output, args.vocab_size, args.json_keys, args.allow_fewer)
    if args.allow_fewer:
        raise ConfigError("--allow-fewer goes with --type bpe. Give a --vocab-size that the text has.")
    unigram = args.type == "sentencepiece-unigram"
    return train_sentencepiece(args.input, args.output, args.vocab_size, args.json_keys, unigram)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--type", choices=TRAINED_TYPES, default="bpe", help="bpe is byte-level BPE (default: bpe)")
    add("--input", nargs="+", required=True, help="what preprocess_data.py takes: files, folders, patterns")
    add("--json-keys", nargs="+", default=["text"], help="keys of the text (default: text)")
    add("--vocab-size", type=int, required=True, help="tokens, with the 256 bytes and the special ones")
    add("--allow-fewer", action="store_true", help="bpe: make a smaller one of a text that has not as many pieces")
    add("--output", required=True, help="the file to write: .json for bpe, .model for SentencePiece")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
