"""Put several token datasets of one tokenizer together, in the order in which they are named.

    python tools/merge_datasets.py --input data/a_text_document data/b_text_document --output-prefix data/all
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.merge import merge_datasets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, 2 for wrong input, 130 when interrupted."""
    args = parser().parse_args(argv)
    try:
        sidecar = merge_datasets(args.input, args.output_prefix, print)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written.", file=sys.stderr)
        return 130
    print(f"{args.output_prefix}  {sidecar.documents:,} documents  {sidecar.tokens:,} tokens")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--input", nargs="+", required=True, metavar="PREFIX", help="datasets, paths without .bin or .idx")
    add("--output-prefix", required=True, metavar="PREFIX", help="the dataset to write")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
