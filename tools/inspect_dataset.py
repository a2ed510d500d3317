"""Show what is in a token dataset: statistics, documents as text, and whether every byte is as it was written.

    python tools/inspect_dataset.py data/corpus_text_document --document 0 --verify
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.inspection import decode_document, printable, verify
from megatron_slw.data.statistics import dataset_statistics, report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for a dataset that is wrong or missing."""
    args = parser().parse_args(argv)
    try:
        dataset = IndexedDataset(args.prefix)
        statistics = dataset_statistics(dataset)
        documents = {number: decode_document(dataset, number, args.tokenizer_dir) for number in args.document}
        verified = verify(dataset) if args.verify else None
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if args.json:
        shown = {str(number): text for number, text in documents.items()}
        print(json.dumps({**statistics.to_json(), "decoded": shown, "verified": args.verify}))
        return 0
    print(report(statistics))
    for number, text in documents.items():
        print(f"\ndocument {number}, {len(dataset.document(number)):,} tokens\n{printable(text)}")
    if verified:
        print(f"\n{verified}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("prefix", help="the dataset's path without .bin or .idx")
    add("--document", type=int, nargs="+", default=[], metavar="N", help="documents to decode, counted from 0")
    add("--tokenizer-dir", help="folder of the tokenizer's file (default: beside the dataset)")
    add("--verify", action="store_true", help="check both SHA-256s and every id against the vocabulary")
    add("--json", action="store_true", help="print one JSON object")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
