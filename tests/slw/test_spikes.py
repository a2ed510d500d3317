"""The spike detector: what it must see, and what must not fool it."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.spikes import LEAST_VALUES, WINDOW, SpikeWindow

SIGMAS = 6.0


def filled(count: int, seq_len: int = 32, loss: float = 4.0, norm: float = 1.0, seed: int = 0) -> SpikeWindow:
    generator, window = random.Random(seed), SpikeWindow()
    for _ in range(count):
        window = window.after(seq_len, loss + generator.gauss(0.0, 0.02), norm + generator.gauss(0.0, 0.05))
    return window


def refused(window: SpikeWindow, steps: list[tuple[int, float, float]]) -> tuple[list[int], SpikeWindow]:
    """As the loop does it: a step that stands out is not trained, and not entered."""
    found = []
    for i, step in enumerate(steps):
        if window.judge(SIGMAS, *step) is None:
            window = window.after(*step)
        else:
            found.append(i)
    return found, window


@pytest.mark.parametrize(("loss", "norm", "name"), [(4.5, 1.0, "loss"), (4.0, 2.1, "gradient norm")])
def test_a_jump_of_either_is_named(loss: float, norm: float, name: str) -> None:
    said = filled(WINDOW).judge(SIGMAS, 32, loss, norm)
    assert said is not None and said.startswith(f"the {name} {loss if name == 'loss' else norm:.4g} stands out"), said
    assert filled(WINDOW).judge(SIGMAS, 32, 4.0, 1.0) is None


def test_falls_and_small_rises_of_a_quiet_curve_are_none() -> None:
    """A rise of 5 % is 10 deviations of this window, and harmless."""
    assert filled(WINDOW).judge(SIGMAS, 32, 4.2, 1.3) is None
    assert filled(WINDOW).judge(SIGMAS, 32, 0.1, 0.001) is None


def test_the_deviations_count_where_the_curve_is_noisy() -> None:
    generator, window = random.Random(3), SpikeWindow()
    for _ in range(WINDOW):
        window = window.after(32, 4.0 + generator.gauss(0.0, 0.3), 1.0 + abs(generator.gauss(0.0, 0.5)))
    assert window.judge(SIGMAS, 32, 5.5, 1.0) is None, "5 deviations"
    assert window.judge(SIGMAS, 32, 6.3, 1.0) is not None, "7 deviations"
    assert window.judge(4.0, 32, 5.5, 1.0) is not None, "the limit is not heeded"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_does_not_poison_the_window(bad: float) -> None:
    window = filled(100)
    assert window.after(32, bad, 1.0) == window.after(32, 4.0, bad) == window
    assert window.judge(SIGMAS, 32, 4.0, 1.0) is None and window.judge(SIGMAS, 32, 9.0, 1.0) is not None


def test_a_spike_does_not_hide_the_next() -> None:
    """Entered, one of 100 would widen the deviation to 8 and hide one of 20 for 128 steps."""
    found, _ = refused(filled(WINDOW), [(32, 100.0, 1.0), (32, 20.0, 1.0), (32, 4.0, 1.0), (32, 5.0, 1.0)])
    assert found == [0, 1, 3]


def test_nothing_is_judged_by_too_few_values() -> None:
    assert filled(LEAST_VALUES - 1).judge(SIGMAS, 32, 1e6, 1e6) is None
    assert filled(LEAST_VALUES).judge(SIGMAS, 32, 1e6, 1e6) is not None


def test_lengths_that_rise_keep_the_window() -> None:
    """Short sequences have higher losses, so a longer step that stands out among them does so all the more."""
    window = filled(WINDOW, seq_len=8, loss=5.0, norm=1.5)
    assert window.judge(SIGMAS, 16, 4.5, 1.0) is None
    assert window.judge(SIGMAS, 16, 6.0, 1.0) is not None, "the first step at a new length is not protected"


@pytest.mark.parametrize("lengths", [(32, 8), (32, 8, 32, 16, 32)])
def test_lengths_that_fall_or_mix_are_no_spikes(lengths: tuple[int, ...]) -> None:
    """A model that knows 32 tokens well is worse on 8: the loss jumps with the length, by 50 deviations."""
    generator, steps = random.Random(1), []
    for length in lengths:
        for _ in range(150):
            rise = 0.05 * (32 - length)
            steps.append((length, 4.0 + rise + generator.gauss(0.0, 0.02), 1.0 + rise + generator.gauss(0.0, 0.05)))
    mixed = random.Random(2).sample(steps, len(steps))
    for order in (steps, mixed):
        assert refused(SpikeWindow(), order)[0] == []
    found, _ = refused(SpikeWindow(), [*steps, (lengths[-1], 9.0, 1.0)])
    assert found == [len(steps)], "a real one at the last length is missed"


def test_a_learning_rate_warmup_is_no_spike() -> None:
    """A loss that stands still and then falls fast; a norm that rises for a hundred steps, to five times as much."""
    generator = random.Random(4)
    losses = [10.8 - 5.0 * max(0, i - 60) / 240 + generator.gauss(0.0, 0.01) for i in range(300)]
    norms = [1.0 + 4.0 * min(1.0, i / 100) + generator.gauss(0.0, 0.02) for i in range(300)]
    assert refused(SpikeWindow(), [(32, *pair) for pair in zip(losses, norms, strict=True)])[0] == []


def test_a_resume_in_the_window_is_exact_and_protected() -> None:
    """Saved at any step and read back, it decides like one that was never saved."""
    generator = random.Random(5)
    steps = [(32, 4.0 + generator.gauss(0.0, 0.02), 1.0 + generator.gauss(0.0, 0.05)) for _ in range(200)]
    steps[120], steps[121], steps[180] = (32, 7.0, 1.0), (32, 4.0, 30.0), (32, 6.0, 1.0)
    straight, expected = refused(SpikeWindow(), steps)
    assert straight == [120, 121, 180]
    for cut in (40, 120, 121, 122, 180):
        first, window = refused(SpikeWindow(), steps[:cut])
        again = SpikeWindow.from_json(json.loads(json.dumps(window.to_json(), allow_nan=False)))
        rest, end = refused(again, steps[cut:])
        assert first + [cut + i for i in rest] == straight and end == expected


def test_the_window_is_bounded_and_in_order() -> None:
    window = filled(5 * WINDOW)
    assert len(window.entries) == WINDOW
    longer = window.after(32, 1.0, 2.0)
    assert longer.entries[:-1] == window.entries[1:] and longer.entries[-1] == (32, 1.0, 2.0)
    assert all(a != b for a, b in pairwise(longer.entries))


BAD = {
    "no list": {},
    "too many": [[8, 1.0, 1.0]] * (WINDOW + 1),
    "short entry": [[8, 1.0]],
    "bool": [[8, True, 1.0]],
    "nan": [[8, math.nan, 1.0]],
    "length 0": [[0, 1.0, 1.0]],
    "text": [[8, "1", 1.0]],
    "huge": [[2**70, 1.0, 1.0]],
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_window_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="spike_window"):
        SpikeWindow.from_json(BAD[kind])
