"""Train a byte-level BPE tokenizer on your own text; writes a Hugging Face tokenizer.json.

python tools/train_tokenizer.py --input corpus.jsonl --vocab-size 8192 --output tokenizer.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.tokenizer_training import train_byte_level_bpe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        help=".jsonl, .jsonl.gz (an object a line) or .txt (a document a file)",
    )
    add("--json-keys", nargs="+", default=["text"], help="keys of the text (default: text)")
    add(
        "--vocab-size",
        type=int,
        required=True,
        help="tokens, with the 256 bytes and the end-of-document token",
    )
    add("--output", required=True, help="the tokenizer.json to write")
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        info = train_byte_level_bpe(args.input, args.output, args.vocab_size, args.json_keys)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{args.output}  byte-level BPE, {info.vocab_size:,} pieces  {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
