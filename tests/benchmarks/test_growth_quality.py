"""benchmarks/growth_quality.py without its runs: arms, moments as published, what is read out of curves, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import growth_quality_arms as arms
from benchmarks.growth_quality_evaluation import AVERAGED, Point, averaged, figures, reached, summarize
from benchmarks.growth_quality_figures import draw
from benchmarks.growth_quality_moments import identity_moment, published_width
from megatron_slw.config.load import resolve
from megatron_slw.growth.flags import parse
from megatron_slw.growth.operators import names


def curve(*losses: float, cost: float = 10.0, grown: int = 99) -> list[Point]:
    return [
        Point(cost * n, n / 2, 100.0 * n, loss, 1 + (n > grown), 128) for n, loss in enumerate(losses, start=1)
    ]


def test_a_point_is_the_mean_of_the_evaluations_before_it_and_of_none_after() -> None:
    assert AVERAGED == 3
    assert averaged([6.0, 3.0, 3.0, 0.0]) == [6.0, 4.5, 4.0, 2.0]


def test_a_loss_is_reached_on_the_straight_line_between_two_points() -> None:
    assert reached(curve(6.0, 3.0, 3.0, 0.0), 3.0) == (35.0, 1.75)
    assert reached(curve(6.0, 3.0), 1.0) is None
    assert reached(curve(2.0, 3.0), 2.5) == (10.0, 0.5)


def test_savings_are_of_the_baselines_compute_and_count_every_stage() -> None:
    found = figures(curve(6.0, 3.0, 3.0, 0.0, grown=2), 3.0, curve(*[3.0] * 7)[-1])
    assert (found["saved_flops"], found["saved_seconds"]) == (0.5, 0.5)
    assert found["grown_at_flops"] == [20.0] and found["loss_jump"] == [0.0]
    never = figures(curve(6.0, 5.0), 3.0, curve(3.0)[-1])
    assert never["saved_flops"] is None
    both = summarize([found, never])
    assert (both["seeds"], both["reached"]) == (2, 1)
    assert both["saved_flops"]["mean"] == 0.5 and both["final_loss"]["count"] == 2


def test_every_arm_is_a_configuration_and_a_growth_that_the_tools_take(tmp_path: Path) -> None:
    chains = [arm.chain(1) for wave in arms.WAVES for arm in wave]
    assert len({chain.name for chain in chains}) == len(chains), "two arms are one run"
    for chain in chains:
        config = resolve(arms.configuration(chain, tmp_path, tmp_path))
        assert (config.curriculum is not None) == chain.slw
        while len(chain.stages) > 1:
            (stage,) = parse(["--load=x", "--save=y", *arms.growth_flags(chain)], "").stages
            large = chain.stages[-1]
            assert stage.layers in (None, large.layers) and stage.hidden_size in (None, large.hidden)
            chain = chain.before


def test_arms_share_the_stages_that_are_alike() -> None:
    exact, fresh = (arms.Arm("2x2xD", False, moments).chain(2) for moments in ("exact", "fresh"))
    assert exact.name != fresh.name
    assert exact.before.before.name == fresh.before.before.name
    assert exact.before.before.name != arms.Arm("2x2xD", False).chain(3).before.before.name


def test_published_moments_of_a_width() -> None:
    moment = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    grown = published_width(moment, (4, 4), f"{names.OUT}.weight", "exp_avg")
    assert grown.tolist() == [[0.5, 1, 0, 0], [1.5, 2, 0, 0], [0, 0, 0.5, 1], [0, 0, 1.5, 2]]
    squares = published_width(moment, (2, 4), names.WORDS, "exp_avg_sq")
    assert squares.tolist() == [[0.25, 0.5, 0.25, 0.5], [0.75, 1.0, 0.75, 1.0]]
    final = published_width(moment[0], (4,), f"{names.FINAL_NORM}.weight", "exp_avg")
    assert final.tolist() == [1.0, 2.0, 1.0, 2.0]
    assert published_width(moment, (2, 2), f"{names.OUT}.weight", "exp_avg") is moment


def test_published_moments_of_an_identity_layer() -> None:
    rectangle = identity_moment(torch.full((8, 4), 7.0), f"{names.FC}.weight", 2)
    assert torch.equal(rectangle, torch.eye(8, 4))
    assert identity_moment(torch.ones(4), f"{names.FC}.bias", 2).sum() == 0
    qkv = identity_moment(torch.ones(12, 4), f"{names.QKV}.weight", 2)
    parts = qkv.view(2, 3, 2, 4)  # (head, q|k|v, D, C)
    for part in range(3):
        assert torch.equal(parts[:, part].reshape(4, 4), torch.eye(4))


def test_pictures_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    baseline = curve(6.0, 5.0, 4.0, 3.0, 3.0, 3.0)
    runs: dict[str, list[dict[str, Any]]] = {}
    for name in ("scratch", "scratch slw", "2xW exact", "2xW slw exact", "2xW fresh"):
        found = figures(curve(6.0, 5.0, 4.0, 3.0, 2.9, 2.5, cost=6.0, grown=2), 3.0, baseline[-1])
        runs[name] = [{"seed": 1, **found}]
    draw({"runs": runs, "arms": {name: summarize(seeds) for name, seeds in runs.items()}}, tmp_path)
    for name in ("growth_quality_curves.png", "growth_quality_savings.png"):
        assert (tmp_path / name).stat().st_size > 5000


def test_the_baseline_is_the_only_arm_with_a_fixed_end() -> None:
    ends = {arm.name: arm.chain(1).stages[-1].end for wave in arms.WAVES for arm in wave}
    assert ends.pop("scratch") == arms.BASELINE_TOKENS and set(ends.values()) == {None}
    with pytest.raises(KeyError):
        ends["scratch"]
