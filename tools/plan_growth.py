"""Say when to grow a model, when to stop, and what that saves, from the loss curves of runs.

    python tools/plan_growth.py runs/small --target 12x768
    python tools/plan_growth.py runs/small runs/large            both curves measured
    python tools/plan_growth.py runs/small --target 12x768 --target 24x1536
    python tools/plan_growth.py --law 6x768 --target 12x768      from the published law alone

The method, and how far its figures can be trusted: docs/growth.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.planner import display
from megatron_slw.growth.planner.calibration import read_calibration
from megatron_slw.growth.planner.inputs import check_slopes, default_slopes, parse_size, read_stages
from megatron_slw.growth.planner.plan import estimate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; the exit status: 0, or 2 for wrong input or a run that is too short."""
    args = parser().parse_args(argv)
    try:
        law = parse_size(args.law) if args.law is not None else None
        stages = read_stages(args.runs, law, [parse_size(text) for text in args.target])
        check_slopes(args.slope, args.stop_slope, len(stages) - 1)
        calibrated = read_calibration(args.calibration) if args.calibration is not None else None
        slopes = args.slope or default_slopes(stages, calibrated)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    laws, resampled = [stage.law for stage in stages], [stage.resampled for stage in stages if stage.resampled]
    source = "calibrated" if calibrated is not None else "published"
    asked = {
        "at the slope asked for" if args.slope else f"at the {source} slope": slopes,
        "where it saves most": [None] * (len(stages) - 1),
    }
    plans = {name: estimate(laws, resampled, row, args.stop_slope) for name, row in asked.items()}
    if args.json:
        print(json.dumps(display.to_json(stages, plans), indent=1))
        return 0
    print(display.curves(stages), display.table(stages, plans, calibrated), sep="\n\n")
    for doubt in display.doubts(stages, plans):
        print(f"note: {doubt}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = result.add_argument
    add("runs", nargs="*", metavar="RUN", help="run directories, or their metrics.jsonl, the smallest model first")
    add("--target", action="append", default=[], metavar="LxC", help="layers x hidden size to grow to; again for more")
    add("--law", metavar="LxC", help="instead of a run: a model of this size, with the published law for its curve")
    add("--slope", action="append", default=[], type=float, help="d log loss / d log compute at which to grow")
    add("--calibration", type=Path, metavar="FILE", help="calibration.json of calibrate_growth.py: slope and position")
    add("--stop-slope", type=float, help="where to stop (default: the best by Kaplan's law: -0.069 at a fixed batch)")
    add("--json", action="store_true", help="print one JSON object")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
