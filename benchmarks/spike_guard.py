"""What the guard against spikes costs a step: the judgement of loss and gradient norm, and the window.

    python benchmarks/spike_guard.py                writes benchmarks/results/spike_guard.json

There are no more collectives than before there was a guard: the loss of every rank is gathered where a flag was, and
serves as the mean loss, which took a reduction of its own; the norm's reduction is a gather.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from megatron_slw.slw.spikes import WINDOW, SpikeWindow

STEPS = 2000


def seconds_per_step() -> float:
    """Processor time of what the loop does with a full window: judged by the loss, then by both, then entered."""
    generator, window = random.Random(0), SpikeWindow()
    for _ in range(WINDOW):
        window = window.after(1024, 4.0 + generator.gauss(0.0, 0.05), 1.0)
    began = time.process_time()
    for _ in range(STEPS):
        loss = 4.0 + generator.gauss(0.0, 0.05)
        window.judge(6.0, 1024, loss)
        window.judge(6.0, 1024, loss, 1.0)
        window = window.after(1024, loss, 1.0)
    return (time.process_time() - began) / STEPS


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "spike_guard.json")
    arguments = parser.parse_args()
    rounds = sorted(seconds_per_step() for _ in range(5))
    result = {"microseconds_per_step": round(1e6 * rounds[2], 1), "rounds": [round(1e6 * r, 1) for r in rounds]}
    result["share_of_a_76_ms_step"] = round(rounds[2] / 0.076, 5)  # the quickstart's shortest, docs/metrics.md
    print(json.dumps(result, indent=1))
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
