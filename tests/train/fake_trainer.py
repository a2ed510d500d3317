"""Stands in for pretrain_gpt.py in tests of the tuner: metrics of a response surface, in milliseconds.

    python fake_trainer.py SURFACE pretrain_gpt.py --ds-config FILE --stop-after N

SURFACE is a JSON file: `least` and `most` bound the stable start lengths and durations; `pause` makes it wait before
its last validation until a file of that name is gone; `fail` is [status, text] to fail with; `diverge` are its last
words where it would fluctuate. Each start appends the probe to SURFACE.starts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("surface", type=Path)
    parser.add_argument("trainer", type=Path)
    parser.add_argument("--ds-config", type=Path)
    parser.add_argument("--stop-after", type=int)
    args = parser.parse_args()
    surface, tree = json.loads(args.surface.read_text()), json.loads(args.ds_config.read_text())
    assert args.trainer.name == "pretrain_gpt.py" and args.trainer.exists(), args.trainer
    (curriculum,) = tree["data_efficiency"]["data_sampling"]["curriculum_learning"]["curriculum_metrics"].values()
    start, duration = curriculum["min_difficulty"], curriculum["schedule_config"]["total_curriculum_step"]
    with Path(f"{args.surface}.starts").open("a") as file:
        file.write(f"{start} {duration}\n")
    if "fail" in surface:
        print(surface["fail"][1], file=sys.stderr)
        return int(surface["fail"][0])
    stable = start >= surface["least"] and duration <= surface["most"]
    return train(surface, tree["megatron_slw"], args.stop_after, stable)


def train(surface: dict[str, Any], settings: dict[str, Any], last: int, stable: bool) -> int:
    run = Path(settings["logging"]["directory"])
    (run / "checkpoints" / "step_000001").mkdir(parents=True, exist_ok=True)
    interval, loss = settings["evaluation"]["interval"], 5.0
    with (run / "metrics.jsonl").open("w", buffering=1) as file:
        for step in range(1, last + 1):
            if step == last:
                while "pause" in surface and Path(surface["pause"]).exists():
                    time.sleep(0.01)
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")
            if not stable and step == last // 2:
                if surface.get("diverge"):
                    print(surface["diverge"], file=sys.stderr)
                    return 1
                loss += 1.0
            loss -= 0.01
            if step % interval == 0 or step == last:
                file.write(json.dumps({"step": step, "val_loss": loss}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
