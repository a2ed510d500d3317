"""The token ledger, audited label by label: each is trained exactly as often as the mode says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.progress import Progress
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.ledger import MODES
from megatron_slw.slw.plan import Plan
from tests.slw.audit import label_counts
from tests.slw.run_configs import run_config

FULL = 24


def staged(mode: str, lengths: tuple[int, ...], ends: tuple[int, ...]) -> CurriculumConfig:
    return CurriculumConfig(
        mode=mode, schedule_type="fixed_discrete", min_difficulty=1, max_difficulty=FULL, difficulty=lengths,
        max_step=ends,
    )  # fmt: skip


def epoch(mode: str, lengths: tuple[int, ...], ends: tuple[int, ...], samples: int, rows: int, **more: Any) -> Plan:
    config = run_config(rows, FULL, staged(mode, lengths, ends), train_samples=samples)
    return compile_plan(config.model_copy(update=more))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dp_size", [1, 2])
def test_one_epoch_with_lengths_that_do_not_divide_and_a_last_partial_batch(mode: str, dp_size: int) -> None:
    """37 samples, lengths 5 and 7 of 24: neither divides 24, and 4 rows do not divide 37 samples."""
    plan = epoch(mode, (5, 7, FULL), (2, 5), samples=37, rows=4)
    counts = label_counts(plan, 37, dp_size)
    cut = np.array([5] * 8 + [7] * 12 + [FULL] * 17)
    trained_before = np.arange(FULL) < cut[:, None]
    if mode == "seqlen_truncate":
        assert np.array_equal(counts, trained_before)
        assert plan.tokens_discarded == (1 - counts).sum()
    elif mode == "seqlen_revisit":
        assert np.array_equal(counts, np.where(trained_before & (cut < FULL)[:, None], 2, 1))
        assert plan.tokens_discarded == 0 and plan.tokens_repeated == 8 * 5 + 12 * 7
    else:
        assert (counts == 1).all()
        assert plan.tokens_discarded == 0 == plan.tokens_repeated
    assert plan.tokens_trained == counts.sum()
    assert plan.progress_at(plan.total_steps).samples == 37


def test_the_steps_that_each_mode_takes() -> None:
    """Counted by hand: 8 rows of 5 and 12 of 7 in five steps, then 17 whole samples and what comes back."""
    steps = {mode: epoch(mode, (5, 7, FULL), (2, 5), 37, 4).total_steps for mode in MODES}
    tails = -(-(8 * 19 + 12 * 17) // 24)
    labels = 37 * 24 - (8 * 5 + 12 * 7)
    assert steps == {
        "seqlen_truncate": 5 + 5, "seqlen_reshape": 5 + -(-labels // (4 * 24)), "seqlen_replay": 5 + 10,
        "seqlen_revisit": 5 + 10, "seqlen_tailpack": 5 + -(-(tails + 17) // 4),
    }  # fmt: skip


def test_tails_pack_without_waste_where_they_fill_rows() -> None:
    """8 tails of 21 labels fill 7 rows of 24 exactly, as 8 x 896 fill 7 x 1024."""
    plan = epoch("seqlen_tailpack", (3, FULL), (2,), samples=16, rows=4)
    rows = [plan.at(step).tokens for step in range(2, plan.total_steps)]
    assert rows == [96, 96, 96, 72]
    assert plan.at(2).slices(0, 1).sample.tolist() == [0, 1]
    assert plan.at(2).slices(0, 1).start.tolist() == [3, 3]
    assert plan.at(2).slices(0, 1).stop.tolist() == [24, 6]


def test_a_replayed_sample_is_whole_and_masked_where_it_was_trained() -> None:
    plan = epoch("seqlen_replay", (5, FULL), (2,), samples=20, rows=4)
    step = plan.at(2)
    slices = step.slices(0, 4)
    assert step.seq_len == FULL and step.tokens == 4 * 19
    assert slices.sample.tolist() == [0, 1, 2, 3], "not the oldest first"
    assert slices.start.tolist() == [0] * 4 and slices.stop.tolist() == [24] * 4
    assert slices.first_trained.tolist() == [5] * 4


def test_samples_that_run_out_during_the_warmup_still_come_back() -> None:
    for mode in ("seqlen_replay", "seqlen_tailpack"):
        plan = epoch(mode, (5, FULL), (1000,), samples=10, rows=4)
        assert (label_counts(plan, 10) == 1).all(), mode
        assert plan.runs[-1].seq_len == FULL


def test_lengths_that_go_up_and_down_bring_back_each_warmup() -> None:
    for mode in ("seqlen_replay", "seqlen_tailpack", "seqlen_reshape"):
        plan = epoch(mode, (6, FULL, 9, FULL), (3, 4, 7), samples=50, rows=4)
        assert (label_counts(plan, 50, 2) == 1).all(), mode


def test_the_one_epoch_run_of_the_literature() -> None:
    """12,574,161 samples of 1024, batch 512, 6,000 steps each of 128 and 256: 7.764 of 12.876 billion are trained."""
    lengths, samples = (128, 256, 1024), 12_574_161

    def plan(mode: str) -> Plan:
        curriculum = staged(mode, lengths, (6000, 12000)).model_copy(update={"max_difficulty": 1024})
        return compile_plan(run_config(512, 1024, curriculum, train_samples=samples))

    truncated, packed, replayed = plan("seqlen_truncate"), plan("seqlen_tailpack"), plan("seqlen_replay")
    assert round(truncated.tokens_trained / 1e9, 3) == 7.764
    assert round(truncated.tokens_discarded / 1e9, 3) == 5.112
    assert packed.total_steps - truncated.total_steps == 9750, "the tails fill exactly 9,750 steps"
    assert packed.tokens_trained == replayed.tokens_trained == samples * 1024
    assert sum(replayed.at(step).tokens == 512 * 896 for step in (12_000, 17_999)) == 2


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_drawn_epochs(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(MODES))
    ends = sorted(data.draw(st.sets(st.integers(1, 12), min_size=1, max_size=4)))
    lengths = data.draw(st.lists(st.integers(1, FULL), min_size=len(ends), max_size=len(ends)))
    samples, rows = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([2, 4, 6]))
    plan = epoch(mode, (*lengths, FULL), tuple(ends), samples, rows)
    counts = label_counts(plan, samples, 2)
    assert plan.tokens_trained == counts.sum()
    assert plan.tokens_discarded == (counts == 0).sum()
    assert plan.tokens_repeated == (counts - 1).clip(0).sum()
    most, least = (2 if mode == "seqlen_revisit" else 1), (0 if mode == "seqlen_truncate" else 1)
    assert least <= counts.min() <= counts.max() <= most
    for number in range(plan.total_steps):
        step = plan.at(number)
        assert step.after == plan.progress_at(number + 1)
        assert plan.progress_at(number) == Progress(number, step.samples_before, step.tokens_before)
        tokens = step.tokens_before + 1
        assert step.tokens == 0 or plan.steps_to_tokens(tokens) == number + 1
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 2000), st.integers(1, 23), st.integers(1, 9))
def test_a_token_target_ends_at_the_first_step_that_reaches_it(mode: str, tokens: int, low: int, end: int) -> None:
    plan = compile_plan(run_config(3, FULL, staged(mode, (low, FULL), (end,)), train_tokens=tokens))
    assert plan.progress_at(plan.total_steps - 1).tokens < tokens <= plan.tokens_trained


def test_untrained_tokens_on_the_way() -> None:
    plan = epoch("seqlen_replay", (5, FULL), (2,), samples=20, rows=4)
    assert [plan.tokens_untrained_at(step) for step in range(plan.total_steps + 1)] == [
        0, 4 * 19, 8 * 19, 4 * 19, 0, 0, 0, 0
    ]  # fmt: skip
