"""The instruments of stability: counted by hand, against a plain reckoning, and exact through a checkpoint."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.stability import LEAST_VALUES, WINDOW, Stability

NAN, INF = math.nan, math.inf


def measured(losses: list[float], norms: list[float] | None = None) -> Stability:
    state = Stability()
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        state = state.after(loss, norm)
    return state


def noise(count: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [4.0 + generator.gauss(0.0, 0.1) for _ in range(count)]


def test_the_ratio_is_to_the_lowest_loss_before() -> None:
    state, ratios = Stability(), []
    for loss in (4.0, 2.0, 3.0, 2.0, 2.4, 2.400001, 1.0):
        ratios.append(state.loss_ratio(loss))
        state = state.after(loss, 1.0)
    assert ratios == [1.0, 0.5, 1.5, 1.0, 1.2, 2.400001 / 2, 0.5]
    assert state.loss_ratio_count == 2, "exactly 1.2 is not above 1.2"
    assert state.lowest_loss == 1.0


def test_a_ratio_of_the_first_step_and_after_a_loss_of_zero_is_finite() -> None:
    assert Stability().loss_ratio(7.0) == 1.0
    assert measured([0.0, 5.0]).loss_ratio(5.0) == 1.0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("which", ["loss", "norm", "both"])
def test_one_value_that_is_not_finite_leaves_no_trace(bad: float, which: str) -> None:
    """Everything measured before and after is as if the step had not been, but for the number of steps."""
    losses, norms = noise(300), noise(300, seed=1)
    losses[250], norms[251] = 9.0, 9.0  # two spikes after it
    with_bad = ([*losses[:200], 4.0 if which == "norm" else bad, *losses[200:]],
                [*norms[:200], 4.0 if which == "loss" else bad, *norms[200:]])  # fmt: skip
    without = measured(losses, norms)
    found = measured(*with_bad)
    assert (found.spikes, found.loss_ratio_count, found.lowest_loss) == (
        without.spikes, without.loss_ratio_count, without.lowest_loss
    )  # fmt: skip
    assert without.spikes == 2 and found.steps == 301
    if which != "norm":
        assert found.losses == without.losses
    if which != "loss":
        assert found.grad_norms == without.grad_norms
    json.dumps(found.to_json(), allow_nan=False)


def test_spikes_are_those_of_a_plain_reckoning() -> None:
    losses, norms = noise(1000), noise(1000, seed=1)
    for place in range(10, 1000, 37):  # some before the window is full enough, some in one that holds another
        losses[place] += place / 600
    norms[500] = 50.0
    expected = []
    for i in range(1000):
        spiked = False
        for values in (losses, norms):
            window = values[max(0, i - WINDOW) : i]
            if len(window) >= LEAST_VALUES:
                spiked |= values[i] - statistics.mean(window) > 6 * statistics.stdev(window)
        expected.append(spiked)
    state, found = Stability(), []
    for loss, norm in zip(losses, norms, strict=True):
        after = state.after(loss, norm)
        found.append(after.spikes > state.spikes)
        state = after
    assert found == expected
    assert 5 < sum(found) < 25 and found[500], "the case tests nothing"
    assert state.spike_score == sum(found) / 1000


def test_a_fall_is_no_spike_and_a_constant_window_is_no_trap() -> None:
    assert measured([*noise(200), 0.1]).spikes == 0
    assert measured([0.1] * 300, [0.3] * 300).spikes == 0


@pytest.mark.parametrize("stop", [0, 1, 62, 63, 127, 128, 129, 400])
def test_a_resume_measures_what_an_uninterrupted_run_does(stop: int) -> None:
    losses, norms = noise(500), noise(500, seed=1)
    losses[200], losses[450], norms[300], losses[100] = 9.0, 9.0, NAN, INF
    straight, state = Stability(), Stability()
    for number, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if number == stop:
            state = Stability.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
        straight, state = straight.after(loss, norm), state.after(loss, norm)
        assert state == straight
    assert len(state.losses) == len(state.grad_norms) == WINDOW


GOOD = measured(noise(10)).to_json()
BAD: dict[str, object] = {
    "no object": [1],
    "missing field": {k: v for k, v in GOOD.items() if k != "spikes"},
    "extra field": GOOD | {"more": 1},
    "window too long": GOOD | {"losses": [1.0] * (WINDOW + 1)},
    "no list": GOOD | {"grad_norms": "1.0"},
    "text in a window": GOOD | {"losses": ["1.0"]},
    "bool in a window": GOOD | {"losses": [True]},
    "infinity": GOOD | {"lowest_loss": INF},
    "negative": GOOD | {"steps": -1},
    "more spikes than steps": GOOD | {"spikes": 11},
    "half a step": GOOD | {"loss_ratio_count": 0.5},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_state_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="stability"):
        Stability.from_json(BAD[kind])


def test_no_torch_is_imported() -> None:
    code = "import sys, megatron_slw.slw.stability; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
