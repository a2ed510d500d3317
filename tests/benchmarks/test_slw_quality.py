import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import slw_quality_arms as arms
from benchmarks.slw_quality_evaluation import (
    clocks,
    diverged,
    run_figures,
    spread,
    step_seconds,
    summarize,
    time_to,
    without_nan,
)
from benchmarks.slw_quality_figures import draw
from megatron_slw.config.load import resolve

COSTS = [(1000, 1.0), (2000, 3.0), (4000, 5.0)]


def step(number: int, tokens: int, ratio: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "step": number, "tokens": tokens, "flops": 10 * tokens, "loss_ratio": ratio, "grad_norm": 1.0,
        "variance_sqrt_abs_max": ratio, "spike_score": 0.0, "tokens_discarded": 0, **more,
    }  # fmt: skip


def example(losses: tuple[float, ...], ratios: tuple[float, ...] = (1.0, 1.5, 1.1)) -> dict[str, Any]:
    steps = [step(n, 100 * n, ratio) for n, ratio in enumerate(ratios, start=1)]
    evaluations = [{"step": n, "val_loss": loss} for n, loss in enumerate(losses, start=1)]
    return run_figures(steps, evaluations, COSTS, warmup_steps=2, planned=True)


def seeds(*losses: tuple[float, ...]) -> list[dict[str, Any]]:
    return [{"seed": number, "rate": 1e-3, **example(found)} for number, found in enumerate(losses)]


def test_a_step_costs_what_lies_between_the_measured_ones_and_goes_on_straight_outside() -> None:
    assert [step_seconds(10 * n, COSTS) for n in (100, 150, 300, 400, 50, 500)] == [1.0, 2.0, 4.0, 5.0, 0.0, 6.0]


def test_time_is_summed_over_the_steps_own_tokens_not_the_tokens_so_far() -> None:
    assert clocks([step(1, 100), step(2, 300)], COSTS)[2] == (300.0, 3000.0, 4.0)
    assert math.isnan(clocks([step(1, 100)], [])[1][2])


def test_spikes_count_everywhere_but_the_largest_ratio_is_taken_after_the_warmup() -> None:
    figures = example((3.0, 2.0, 2.1))
    assert (figures["loss_ratio_count"], figures["loss_ratio_max"]) == (1, 1.1)
    assert figures["pearson_ratio_variance_max"] == pytest.approx(1.0)


def test_the_target_is_met_on_a_straight_line_between_evaluations_and_not_invented() -> None:
    curve = example((3.0, 2.0, 2.1))["curve"]
    assert time_to(curve, 2.5) == {"tokens": 150.0, "flops": 1500.0, "seconds": 1.5}
    assert time_to(curve, 1.9) is None


def test_a_run_that_broke_off_or_stayed_far_above_its_best_diverged() -> None:
    assert diverged(2.0, 2.0, planned=False)
    assert diverged(2.0, 2.3, planned=True)
    assert not diverged(2.0, 2.2, planned=True)


def test_the_mean_over_seeds_leaves_out_those_that_never_got_there_and_says_how_many_did() -> None:
    found = summarize({"a": seeds((3.0, 2.0, 2.0), (3.0, 2.9, 2.9))}, {"a": "a"}, fixed=2.5)["a"]
    assert (found["to_fixed"]["seeds"], found["to_fixed"]["tokens"]["mean"]) == (1, 150.0)
    assert found["final_val_loss"]["mean"] == pytest.approx(2.45)
    assert spread([math.nan]) is None
    assert spread([1.0, math.nan, 3.0]) == {"mean": 2.0, "stdev": pytest.approx(math.sqrt(2)), "count": 2}


def test_each_seed_is_measured_against_the_reference_of_the_same_seed() -> None:
    runs = {"full": seeds((3.0, 2.0, 2.0), (3.0, 2.8, 2.8)), "slw": seeds((2.5, 2.2, 2.0), (2.5, 2.2, 2.0))}
    found = summarize(runs, {"full": "full", "slw": "full"}, fixed=1.0)["slw"]
    assert found["to_reference"]["tokens"] == {"mean": 200.0, "stdev": pytest.approx(100 * math.sqrt(2)), "count": 2}
    assert found["to_fixed"] == {"seeds": 0, "tokens": None, "flops": None, "seconds": None}
    assert found["final_below_reference"]["mean"] == pytest.approx(0.4)


@pytest.mark.parametrize("arm", arms.ARMS, ids=lambda arm: f"{arm.study}-{arm.name}")
def test_every_arm_is_a_valid_configuration(arm: arms.Arm, tmp_path: Path) -> None:
    config = resolve(arms.configuration(arm, 1, tmp_path, tmp_path / "run"))
    assert config.train_batch_size == arms.ROWS


def test_pictures_are_drawn_and_small(tmp_path: Path) -> None:
    studies = {}
    for study, chosen in (("stability", arms.STABILITY), ("epoch", arms.EPOCH)):
        found = seeds((3.0, 2.0, 2.0), (3.0, 2.9, 2.9))
        runs = {arm.name: [{**figures, "rate": arm.rate} for figures in found] for arm in chosen}
        studies[study] = {"arms": without_nan(summarize(runs, arms.references(study), 2.5)), "runs": runs}
    draw(studies, tmp_path)
    for name in studies:
        assert 5_000 < (tmp_path / f"slw_quality_{name}.png").stat().st_size < 150_000
