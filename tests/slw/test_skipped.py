"""Steps that are left out: labels counted by hand, in every token mode, and the file's fields checked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.ledger import MODES
from megatron_slw.slw.plan import Plan, Run
from megatron_slw.slw.skipped import Skip, Skipped, sample_ranges

SKIPS = Skipped((Skip(2, 3, 2, "a", 9.0, None), Skip(5, 9, 6, "b", None, None, back_to=4)))


def plan_of(mode: str) -> Plan:
    return Plan((Run(0, 8, 4), Run(4, 16, 4), Run(8, 32, 4)), 14, 32, mode, samples=60)


def labels(plan: Plan, number: int) -> set[tuple[int, int]]:
    """(sample, label) of everything that the step trains."""
    step = plan.at(number)
    slices = step.slices(0, step.rows)
    return {
        (int(sample), label)
        for sample, first, stop in zip(slices.sample, slices.first_trained, slices.stop, strict=True)
        for label in range(first, stop)
    }


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_the_labels_of_the_steps_that_were_trained(mode: str) -> None:
    plan = plan_of(mode)
    count = 0
    for number in range(plan.total_steps):
        position = plan.progress_at(number)
        assert SKIPS.trained(plan, position) == replace(position, tokens=count), number
        if SKIPS.at(number) is None:
            count += len(labels(plan, number))
    assert SKIPS.trained(plan, plan.progress_at(plan.total_steps)).tokens == count < plan.tokens_trained


def test_stretches_that_overlap_count_once() -> None:
    plan = plan_of("seqlen_truncate")
    both = SKIPS.with_skip(Skip(1, 7, 6, "c", None, None, back_to=0))
    assert both.steps_before(14) == 8 and both.steps_before(6) == 5 and both.steps_before(1) == 0
    lost = sum(plan.at(number).tokens for number in range(1, 9))
    end = plan.progress_at(14)
    assert both.trained(plan, end).tokens == end.tokens - lost


def test_joining_keeps_the_order_and_doubles_nothing() -> None:
    extra = Skip(11, 12, 11, "d", 1.0, 2.0)
    assert SKIPS.joined([*SKIPS.skips, extra]) == SKIPS.with_skip(extra)
    assert SKIPS.with_skip(extra).faults_since(6) == 2


@pytest.mark.parametrize("mode", MODES)
def test_sample_ranges_are_the_samples_of_the_step(mode: str) -> None:
    plan = plan_of(mode)
    for number in range(plan.total_steps):
        step = plan.at(number)
        ranges = sample_ranges(step)
        ids = [sample for first, stop in ranges for sample in range(first, stop)]
        assert ids == np.unique(step.slices(0, step.rows).sample).tolist(), "not sorted, or not all"
        assert all(before[1] < after[0] for before, after in zip(ranges, ranges[1:], strict=False)), "not joined"


def test_json_keeps_everything() -> None:
    assert Skipped.from_json(json.loads(json.dumps(SKIPS.to_json(), allow_nan=False))) == SKIPS


GOOD: dict[str, Any] = {
    "first": 3, "stop": 5, "step": 4, "reason": "x", "loss": 1.0, "grad_norm": None, "back_to": None,
}  # fmt: skip
BAD: dict[str, Any] = {
    "no list": {"a": 1},
    "no object": [7],
    "field missing": [{name: value for name, value in GOOD.items() if name != "reason"}],
    "field too many": [GOOD | {"x": 1}],
    "nothing left out": [GOOD | {"stop": 3}],
    "another step": [GOOD | {"step": 5}],
    "negative": [GOOD | {"first": -1}],
    "bool": [GOOD | {"first": True}],
    "too large": [GOOD | {"stop": 2**64}],
    "goes back ahead": [GOOD | {"back_to": 4}],
    "loss as text": [GOOD | {"loss": "1"}],
    "loss not finite": [GOOD | {"loss": float("inf")}],
    "reason of a megabyte": [GOOD | {"reason": "x" * 10**6}],
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_records_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^skipped"):
        Skipped.from_json(BAD[kind])
