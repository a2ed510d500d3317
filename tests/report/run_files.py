"""Run directories for the tests of the comparison page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def step(number: int, **fields: Any) -> dict[str, Any]:
    """A step of 100 tokens and 2 seconds with the loss 10 / number."""
    record = {"step": number, "tokens": 100 * number, "samples": number, "seq_len": 100, "loss": 10 / number}
    return {**record, "lr": 1e-3, "grad_norm": 0.5, "step_time_s": 2.0, "tokens_per_s": 50.0, "mfu": None, **fields}


def stable_step(number: int, **fields: Any) -> dict[str, Any]:
    """A step with the records of the stability instruments and FLOPs."""
    stability = {"loss_ratio": 1.5 if number % 10 == 0 else 0.9, "spike_score": 0.125, "tokens_discarded": number}
    variance = {"variance_sqrt_l1": 7.0 + number % 10, "variance_sqrt_abs_max": 0.1, "flops": 1000 * number}
    return step(number, **{**stability, **variance, **fields})


def evaluation(number: int, loss: float | None, **fields: Any) -> dict[str, Any]:
    """The evaluation after that step."""
    return {"step": number, "tokens": 100 * number, "val_loss": loss, **fields}


def write_run(folder: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Make `folder` a run directory with these records, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def falling(steps: int, every: int, loss: float, drop: float, **fields: Any) -> list[dict[str, Any]]:
    """A run whose validation loss is `loss` at step `every` and falls by `drop` each time."""
    records = []
    for number in range(1, steps + 1):
        records.append(stable_step(number, **fields))
        if number % every == 0:
            records.append(evaluation(number, loss - drop * (number // every - 1)))
    return records
