"""Put runs side by side on one self-contained HTML page: loss, length and stability against steps, tokens, FLOPs, time.

    python tools/report.py runs/baseline runs/slw --output report.html

The first run is what the others are compared with. Scores that tools/evaluate.py --json printed are shown if they lie
in a run's folder evaluation/, one .json a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.report.finding import finding
from megatron_slw.report.inputs import read_runs
from megatron_slw.report.page import write
from megatron_slw.report.table import compare, summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for wrong input."""
    args = parser().parse_args(argv)
    try:
        comparison = compare(read_runs(args.run), args.target_loss)
        output = args.output or (None if args.json else "report.html")
        size = write(comparison, output) if output else 0
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(summary(comparison)))
    else:
        print(f"{finding(comparison)}\n{output}  {size / 1000:,.0f} kB")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("run", nargs="+", metavar="RUN", help="a run directory (logging.directory), or NAME=DIRECTORY; at most five")
    add("--output", help="the page (default: report.html; with --json none unless given)")
    add("--target-loss", type=float, help="validation loss to reach (default: the first run's best)")
    add("--json", action="store_true", help="print the table as one JSON object")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
