"""Plans against the published figures: the accounting, and the whole way from published loss curves."""

from __future__ import annotations

import math

import pytest

from megatron_slw.config.schema import ModelConfig
from megatron_slw.growth.derive import POSITIONS
from megatron_slw.growth.planner.fit import Fit, fit
from megatron_slw.growth.planner.law import Law, kaplan, optimal_slope
from megatron_slw.growth.planner.plan import PUBLISHED, Interval, estimate, growth_slope, make_plan
from megatron_slw.train.estimate import flops_per_token
from tests.growth.planner import logs

# parameters in millions: small, large; steps: growth, the same loss on the large model's curve, stop; saving
TABLE = {
    "base/2 depth": (42.5, 84.9, 2949, 2149, 5099, 0.132),
    "large/2 depth": (340.0, 679.5, 6799, 4549, 7749, 0.148),
    "base/2 width": (21.2, 84.9, 3799, 2049, 5099, 0.216),
    "large/2 width": (170.0, 679.5, 6299, 3549, 7749, 0.255),
}


@pytest.mark.parametrize("pair", TABLE)
def test_the_accounting_gives_the_published_savings(pair: str) -> None:
    """Laws through the published points; any others through them save as much."""
    small_size, large_size, grow, same, stop, saving = TABLE[pair]
    large = Law(2.0, 3000.0, 0.9, cost=large_size)
    loss = large.loss(same)
    small = Law(2.0, (loss - 2.0) * grow**0.9, 0.9, cost=small_size)
    plan = make_plan([small, large], [small.slope(loss)], large.slope(large.loss(stop)))
    assert plan is not None
    assert plan.saved == pytest.approx(saving, abs=1e-3)
    assert plan.growths[0].position == pytest.approx(same / grow, rel=1e-9)
    assert plan.lengths == pytest.approx((grow, stop - same))


def test_the_tool_and_the_plan_know_the_same_positions() -> None:
    assert {factors: published.position for factors, published in PUBLISHED.items()} == POSITIONS


def curve(losses: tuple[float, ...], cost: float, last: int = 10_000) -> Fit:
    pairs = [(s, v) for s, v in zip(logs.STEPS, losses, strict=True) if logs.WARM <= s <= last]
    return fit([s for s, _ in pairs], [v for _, v in pairs], cost)


@pytest.mark.parametrize("last", [5000, 6500, 10_000])
def test_from_the_published_curves_alone(last: int) -> None:
    """Growing where the fitted curves save most gives the published position and saving of the pair, 0.539 and 21.6 %.

    The small model's curve may end early. The published growth point, 3799, is the first noisy slope of a running mean
    that is flat enough; the optimum is flat, so 650 steps later saves as much.
    """
    small, large = curve(logs.QUARTER, 21.2, last), curve(logs.BASE, 84.9)
    found = estimate([small.law, large.law], [small.resampled, large.resampled], [None])
    assert found is not None
    assert found.plan.growths[0].before == pytest.approx(4400, abs=100)
    assert found.positions[0].value == pytest.approx(0.539, abs=0.025)
    assert found.saved.value == pytest.approx(0.216, abs=0.01)
    assert found.saved.high - found.saved.low < 0.012
    assert found.stop.value == pytest.approx(5740, abs=50)


def test_the_output_layer_and_attention_cost_a_part_of_the_saving() -> None:
    """Of the same pair, with all FLOPs of a token: the small model's are more than a quarter of the large one's."""
    costs = []
    for width in (384, 768):
        sizes = {"num_layers": 12, "hidden_size": width, "num_attention_heads": 4, "vocab_size": 50257}
        costs.append(float(flops_per_token(ModelConfig.model_validate(sizes | {"seq_length": 1024}), 1024)))
    plan = make_plan([curve(logs.QUARTER, costs[0]).law, curve(logs.BASE, costs[1]).law], [None])
    assert plan is not None
    assert plan.saved == pytest.approx(0.137, abs=0.005)


def test_the_published_slope_lies_where_the_published_commands_grow() -> None:
    """Width: from step 6249 or 6499."""
    law = curve(logs.QUARTER, 21.2).law
    assert 6249 <= law.done(law.loss_at_slope(PUBLISHED[(1.0, 2.0)].slope)) <= 6499


def test_a_predicted_target_saves_about_what_the_measured_one_does() -> None:
    small, large = curve(logs.QUARTER, 21.2), curve(logs.BASE, 84.9)
    predicted = make_plan([small.law, small.law.larger(4.0, 84.9)], [None])
    measured = make_plan([small.law, large.law], [None])
    assert predicted is not None and measured is not None
    assert predicted.saved == pytest.approx(measured.saved, abs=0.05)


def test_a_third_stage_saves_more_by_kaplan_s_law() -> None:
    """8.0 % and 9.1 %: less than from real curves, for the law is too steep below (growth.md)."""
    sizes = [5.3e6, 2.1e7, 8.5e7]
    two, three = (make_plan([kaplan(n) for n in some], [None] * (len(some) - 1)) for some in (sizes[1:], sizes))
    assert two is not None and three is not None
    assert two.saved == pytest.approx(0.080, abs=1e-3)
    assert three.saved == pytest.approx(0.091, abs=1e-3)
    whole = kaplan(sizes[-1]).compute(three.stop_loss)
    assert three.compute_from_scratch == pytest.approx(whole)
    gains = sum(
        kaplan(large).compute(growth.loss) - kaplan(small).compute(growth.loss)
        for small, large, growth in zip(sizes, sizes[1:], three.growths, strict=False)
    )
    assert three.compute == pytest.approx(whole - gains), "each growth saves what it saves alone"


def test_stages_in_the_wrong_order_are_no_plan() -> None:
    laws = [kaplan(n) for n in (2e7, 4e7, 8e7)]
    assert make_plan(laws, [-0.03, -0.06]) is None, "the second growth lies before the first"
    assert make_plan(laws[:2], [-0.01]) is None, "the target would stop before it begins"
    assert make_plan(laws[:2], [-0.5]) is None, "no curve is that steep"


def test_noise_that_decides_whether_there_is_a_plan_is_said() -> None:
    small, large = kaplan(2e7), kaplan(8e7)
    assert estimate([small, large], [[small] * 10, [large] * 5 + [small] * 5], [-0.0475]) is None
    found = estimate([small, large], [[small] * 10, [large] * 10], [-0.0475])
    assert found is not None
    assert found.saved == Interval(found.plan.saved, found.plan.saved, found.plan.saved)


def test_other_factors_take_the_law_s_slope() -> None:
    assert growth_slope(2.0, 1.0) == -0.0575
    assert growth_slope(4.0, 1.0) == pytest.approx(-0.0519, abs=5e-5)
    assert growth_slope(1.0, 1.0) == optimal_slope()


def test_a_wide_interval_is_one() -> None:
    assert not Interval(1.0, 0.9, 1.5).is_wide
    assert Interval(1.0, 0.6, 1.5).is_wide
    assert Interval(1.0, -0.1, 1.5).is_wide
    assert Interval(1.0, 0.9, math.inf).is_wide
