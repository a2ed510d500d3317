"""Who is named when a job stands still: the stopped rank, the one that works, the one behind; and who is not."""

from __future__ import annotations

from dataclasses import replace

from megatron_slw.train.heartbeat import Beat, Seen, culprits, names, stalled, straggler, table, update

BEAT = Beat(count=9, where="step 12", moves=12, place="engine.py:1 f", working=0.1, window_s=30.0, waits=True)
FRESH = Seen(BEAT, silent_s=1.0, standing_s=100.0)


def test_a_rank_without_beats_is_named_before_those_that_wait() -> None:
    ranks = {0: FRESH, 1: replace(FRESH, silent_s=90.0), 2: FRESH}
    assert culprits(ranks, silent_s=30.0)[0] == [1]


def test_the_rank_that_works_while_the_others_wait_is_named() -> None:
    ranks = {0: FRESH, 1: FRESH, 2: replace(FRESH, beat=replace(BEAT, waits=False))}
    assert culprits(ranks, silent_s=30.0)[0] == [2]


def test_the_rank_that_is_behind_is_named_though_all_wait() -> None:
    ranks = {0: FRESH, 1: replace(FRESH, beat=replace(BEAT, moves=11)), 2: FRESH}
    assert culprits(ranks, silent_s=30.0)[0] == [1]


def test_nobody_is_singled_out_where_all_do_the_same() -> None:
    assert culprits({0: FRESH, 1: FRESH}, silent_s=30.0)[0] == [0, 1]
    busy = replace(FRESH, beat=replace(BEAT, waits=False))
    who, what = culprits({0: busy, 1: busy}, silent_s=30.0)
    assert who == [0, 1] and "too short" in what


def test_a_rank_that_said_why_it_ends_is_no_dead_one() -> None:
    ended = replace(FRESH, silent_s=90.0, beat=replace(BEAT, failed="OutOfMemory: ..."))
    who, what = culprits({0: FRESH, 1: ended}, silent_s=30.0)
    assert who == [1] and what == "failed"


def test_a_long_start_is_no_hang_but_silence_in_it_is() -> None:
    starting = replace(FRESH, standing_s=500.0, beat=replace(BEAT, moves=0))
    assert not stalled({0: starting}, timeout_s=60.0)
    assert stalled({0: replace(starting, silent_s=61.0)}, timeout_s=60.0)
    assert stalled({0: FRESH, 1: replace(FRESH, standing_s=500.0)}, timeout_s=400.0)


def test_silence_and_standing_are_told_apart_by_the_readers_clock() -> None:
    seen = {3: update({}, 3, BEAT, now=10.0)}
    seen[3] = update(seen, 3, replace(BEAT, count=10), now=20.0)
    assert seen[3][1:] == (20.0, 10.0), "a beat came, the loop did not move on"
    seen[3] = update(seen, 3, replace(BEAT, count=11, moves=13), now=30.0)
    assert seen[3][1:] == (30.0, 30.0)
    seen[3] = update(seen, 3, replace(BEAT, count=11, moves=13), now=99.0)
    assert seen[3][1:] == (30.0, 30.0), "the same beat read twice is no sign of life"


def test_a_straggler_is_one_rank_that_works_while_the_others_wait() -> None:
    busy, waiting, half = (replace(BEAT, working=share) for share in (0.97, 0.3, 0.6))
    assert straggler({0: waiting, 1: busy, 2: waiting}) == 1
    assert straggler({0: half, 1: busy}) is None, "the other hardly waits: an uneven layout, not a slow machine"
    assert straggler({0: busy, 1: busy, 2: waiting}) is None
    assert straggler({0: busy}) is None
    short_steps, always = replace(BEAT, working=0.72), replace(BEAT, working=0.0)
    assert straggler({0: always, 1: short_steps}) == 1, "communication has its share of short steps"
    assert straggler({0: always, 1: short_steps, 2: busy, 3: always}) == 2
    assert straggler({rank: replace(BEAT, working=0.8) for rank in range(4)}) is None


def test_a_thousand_ranks_in_one_place_are_one_line() -> None:
    ranks = {rank: FRESH for rank in range(1000)} | {7: replace(FRESH, silent_s=90.0)}
    lines = table(ranks, silent_s=30.0)
    assert len(lines) == 2 and "rank 7: step 12, last seen 90 s ago" in "".join(lines)
    assert names(range(1000)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 992 more"


def test_a_beat_survives_its_text_form_and_long_texts_are_cut() -> None:
    assert Beat.from_json(BEAT.to_json()) == BEAT
    assert len(replace(BEAT, failed="x" * 10**6).to_json()) < 1000
