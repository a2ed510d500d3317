"""The search against every response surface of a small space, the criterion on series made by hand, the space."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.tuning import Choice, Probe, Space, fluctuation, next_move, paths, smoothest_path
from megatron_slw.slw.tuning_space import probe_plan, probe_steps, search_space, two_digits
from tests.slw.run_configs import linear, run_config

SPACE = Space((8, 16, 32, 64, 128, 256, 512), tuple(tuple(range(100, 1601 - start, 100)) for start in range(7)))


def search(space: Space, stable: Callable[[Probe], bool]) -> tuple[Choice, list[Probe]]:
    """Make the probes that are asked for; the choice and the probes in order."""
    results: dict[Probe, bool] = {}
    while isinstance(move := next_move(space, results), Probe):
        assert move not in results, f"{move} is asked for twice"
        results[move] = stable(move)
    return move, list(results)


@pytest.mark.parametrize("least", [1, 8, 9, 16, 33, 200, 512])
@pytest.mark.parametrize("most", [100, 150, 700, 1500, 1600, 10**6])
def test_a_monotone_surface_gives_its_exact_corner_in_logarithmically_many_probes(least: int, most: int) -> None:
    choice, tried = search(SPACE, lambda probe: probe[0] >= least and probe[1] <= most)
    start = min(value for value in SPACE.starts if value >= least)
    durations = SPACE.durations[SPACE.starts.index(start)]
    assert choice.probe == (start, max(value for value in durations if value <= most))
    bound = 1 + math.ceil(math.log2(len(SPACE.starts))) + math.ceil(math.log2(len(durations)))
    assert len(tried) <= bound


def test_the_usual_case_costs_one_probe_for_the_start() -> None:
    _, tried = search(SPACE, lambda probe: probe[1] <= 500)
    assert [probe.total_curriculum_step for probe in tried].count(100) == 1


def test_nothing_stable_chooses_nothing() -> None:
    choice, tried = search(SPACE, lambda _: False)
    assert choice == Choice(None, Probe(512, 100), None)
    assert {probe.total_curriculum_step for probe in tried} == {100}, "durations were tried without a start"
    assert len(tried) <= 4


def test_everything_stable_chooses_the_shortest_start_and_the_longest_duration() -> None:
    choice, tried = search(SPACE, lambda _: True)
    assert choice == Choice(Probe(8, 1600), None, None)
    assert tuple(tried) == smoothest_path(SPACE)


@pytest.mark.parametrize("salt", range(200))
def test_on_any_surface_the_choice_was_tried_and_stable_and_its_neighbours_not(salt: int) -> None:
    def stable(probe: Probe) -> bool:
        return hash((salt, *probe)) % 5 > 1  # ints hash alike in every process

    choice, tried = search(SPACE, stable)
    for neighbour in (choice.shorter, choice.longer):
        assert neighbour is None or (neighbour in tried and not stable(neighbour))
    if choice.probe is None:
        return
    assert choice.probe in tried and stable(choice.probe)
    row = SPACE.starts.index(choice.probe.min_difficulty)
    assert (choice.shorter is None) == (row == 0)
    assert (choice.longer is None) == (choice.probe.total_curriculum_step == SPACE.durations[row][-1])


def test_paths_are_exactly_what_can_happen() -> None:
    space = Space((8, 16, 32), ((10, 20, 30), (10, 20), (10,)))
    found = set()
    probes = [Probe(start, steps) for start, row in zip(space.starts, space.durations, strict=True) for steps in row]
    for bits in range(2 ** len(probes)):
        found.add(tuple(search(space, lambda probe, bits=bits: bool(bits >> probes.index(probe) & 1))[1]))
    assert set(paths(space)) == found


def test_paths_after_results_are_what_is_left() -> None:
    stable = {Probe(8, 100): True}
    whole = {path[1:] for path in paths(SPACE) if len(path) > 1 and path[1].min_difficulty == 8 and path[0][0] == 8}
    assert set(paths(SPACE, stable)) == {path for path in whole if path[0][1] != 100}


@pytest.mark.parametrize(
    ("starts", "durations"),
    [((), ()), ((8, 8), ((1,), (1,))), ((8,), ((1, 2), (1, 2))), ((8, 16), ((1, 2), (2,))), ((8,), ((),))],
)
def test_a_space_that_is_none_is_refused(starts: tuple[int, ...], durations: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="no search space"):
        Space(starts, durations)


def nats(*perplexities: float) -> list[tuple[int, float | None]]:
    """A series of validations, every tenth step."""
    return [(10 * number, math.log(value)) for number, value in enumerate(perplexities, 1)]


def test_a_rise_is_measured_from_the_best_before_it_not_from_the_last() -> None:
    found = fluctuation(nats(1000, 100, 120, 135, 90), limit=1.3)
    assert found.significant and found.worst_step == 40 and found.worst_ratio == pytest.approx(1.35)


def test_rises_up_to_the_limit_are_not_significant() -> None:
    found = fluctuation(nats(1000, 100, 125, 50, 64, 40))
    assert not found.significant and found.worst_step == 50 and found.worst_ratio == pytest.approx(1.28)


def test_the_limit_itself_is_not_above_it() -> None:
    assert not fluctuation([(1, 0.0), (2, math.log(1.5))], limit=1.5).significant
    assert fluctuation([(1, 0.0), (2, math.log(1.5) + 1e-9)], limit=1.5).significant


def test_nothing_after_the_first_significant_rise_counts() -> None:
    assert fluctuation(nats(100, 140, 900)) == fluctuation(nats(100, 140))


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_the_worst(lost: float | None) -> None:
    found = fluctuation([(10, 3.0), (20, lost), (30, 2.0)])
    assert found.significant and found.worst_ratio == math.inf and found.worst_step == 20


def test_a_huge_rise_does_not_overflow() -> None:
    assert fluctuation([(1, 1.0), (2, 1e6)]).significant


@pytest.mark.parametrize("losses", [[], nats(50), nats(50, 40, 30)])
def test_a_fall_and_no_news_are_stable(losses: list[tuple[int, float | None]]) -> None:
    found = fluctuation(losses)
    assert not found.significant and found.worst_ratio == 1.0 and found.worst_step is None


def test_a_probe_is_the_papers_10k_for_3k() -> None:
    assert probe_steps(run_config(4, 64, linear(8, 64, 10), train_steps=50_000, lr_warmup_steps=3000)) == 10_000
    assert [two_digits(n) for n in (0, 7, 99, 101, 3334, 10_000, 10_001)] == [0, 7, 99, 110, 3400, 10_000, 11_000]


def test_a_warmup_in_tokens_takes_as_many_steps_as_the_lengths_make_of_it() -> None:
    config = run_config(4, 64, linear(8, 64, 10**6), train_steps=50_000, lr_warmup_tokens=4 * 8 * 300)
    assert probe_steps(config) == 1000


def test_the_space_of_the_papers_117m_run() -> None:
    """Cases 5 and 6: 37.5K steps of 4,096 x 1,024 tokens, LR warmup 3K; the choice there was 8 and 20K."""
    curriculum = linear(8, 1024, 20_000)
    config = run_config(4096, 1024, curriculum, train_tokens=157_286_400_000, lr_warmup_steps=3000)
    space = search_space(config, probe_steps(config))
    assert space.starts == (8, 16, 32, 64, 128, 256, 512)
    assert space.durations[0] == tuple(range(10_000, 50_001, 5000))
    for start, row in zip(space.starts, space.durations, strict=True):
        total = probe_plan(config, Probe(start, row[-1])).total_steps
        after = probe_plan(config, Probe(start, row[-1] + 5000)).total_steps
        assert row[-1] <= 0.8 * total and row[-1] + 5000 > 0.8 * after, f"start {start} ends at {row[-1]} of {total}"
    assert max(map(len, paths(space))) <= 8


def test_a_long_run_has_no_more_durations_but_coarser_ones() -> None:
    config = run_config(512, 256, linear(64, 256, 270_000), train_tokens=39_321_600_000, lr_warmup_steps=3000)
    space = search_space(config, 10_000)
    assert all(len(row) <= 16 for row in space.durations) and space.durations[0][-1] > 370_000


def test_starts_stand_on_the_grid_of_lengths() -> None:
    config = run_config(4, 256, linear(24, 256, 10, quantum=24), train_steps=1000)
    assert search_space(config, 100).starts == (24, 48, 96, 192)
    config = run_config(4, 256, linear(2, 256, 10, quantum=2), train_steps=1000)
    assert search_space(config, 100).starts == (8, 16, 32, 64, 128)


def test_a_run_that_is_little_longer_than_a_probe_has_its_start_tuned() -> None:
    config = run_config(4, 64, linear(8, 64, 10), train_steps=110)
    assert search_space(config, 100).durations == ((100,),) * 3


def test_the_duration_of_the_file_does_not_matter() -> None:
    config = run_config(4, 64, linear(8, 64, 10), train_steps=100)
    changes = {"total_curriculum_step": None, "duration": 0.5}
    assert config.curriculum is not None, "it has one"
    other = config.model_copy(update={"curriculum": config.curriculum.model_copy(update=changes)})
    assert probe_plan(config, Probe(16, 40)) == probe_plan(other, Probe(16, 40))
    wanted = config.model_copy(update={"curriculum": linear(16, 64, 40)})
    assert probe_plan(config, Probe(16, 40)) == compile_plan(wanted)


def curriculum(**changes: object) -> CurriculumConfig:
    return linear(8, 64, 10).model_copy(update=changes)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (None, "no curriculum to tune"),
        (curriculum(schedule_type="mixed"), "schedule_type is mixed"),
        (curriculum(schedule_type="fixed_discrete", difficulty=(8, 64), max_step=(5,)), "is fixed_discrete"),
        (curriculum(max_difficulty=8), "no start length"),
    ],
)
def test_what_cannot_be_tuned_is_refused(schedule: CurriculumConfig | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_space(run_config(4, 64, schedule, train_steps=1000), 100)


def test_a_run_shorter_than_a_probe_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 90 steps, fewer than a probe of 100"):
        search_space(run_config(4, 64, linear(8, 64, 10), train_steps=90), 100)


def test_a_run_without_learning_rate_warmup_must_say_how_long_a_probe_is() -> None:
    with pytest.raises(ConfigError, match="--probe-steps"):
        probe_steps(run_config(4, 64, linear(8, 64, 10), train_steps=90))
