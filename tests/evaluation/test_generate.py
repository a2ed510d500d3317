"""Sampling follows its settings, repeats with its seed, and never draws a padding column."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from random_models import FixedLogits, random_model

from megatron_slw.evaluation.generate import Sampling, next_token_probabilities, stream_tokens


def take(model: torch.nn.Module, prompt: list[int], count: int, sampling: Sampling, vocab: int = 300) -> list[int]:
    """The first `count` tokens after the prompt."""
    return list(islice(stream_tokens(model, prompt, vocab_size=vocab, length=32, sampling=sampling), count))


def test_greedy_is_the_argmax_of_the_whole_window(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    ids = [5, 7, 11]
    expected = []
    for _ in range(40):  # beyond the full length of 32
        with torch.no_grad():
            expected.append(int(model(torch.tensor([(ids + expected)[-32:]]))[0, -1, :300].argmax()))
    assert take(model, ids, 40, Sampling(temperature=0)) == expected
    assert take(model, ids, 40, Sampling(temperature=0, seed=9)) == expected


def test_seed_decides_and_global_random_state_does_not(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = take(model, [1], 20, Sampling(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert take(model, [1], 20, Sampling(seed=3)) == first
    assert take(model, [1], 20, Sampling(seed=4)) != first


def test_padding_columns_are_never_drawn() -> None:
    model = FixedLogits([0.0, 0.0, 0.0, 90.0, 90.0])
    assert set(take(model, [0], 200, Sampling(), vocab=3)) == {0, 1, 2}
    assert set(take(model, [0], 5, Sampling(temperature=0), vocab=3)) <= {0, 1, 2}


def test_window_is_cropped_to_the_full_length() -> None:
    model = FixedLogits([0.0, 0.0])
    take(model, [1] * 30, 6, Sampling(), vocab=2)
    assert model.lengths == [30, 31, 32, 32, 32, 32]


def test_stop_id_ends_the_text() -> None:
    model = FixedLogits([0.0, 5.0])
    stream = stream_tokens(model, [0], vocab_size=2, length=8, sampling=Sampling(temperature=0), stop_id=1)
    assert list(stream) == []


LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.5, 0.15, 0.25]),
        (Sampling(top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_k=9), [0.1, 0.5, 0.15, 0.25]),
        (Sampling(top_p=0.5), [0, 1, 0, 0]),
        (Sampling(top_p=0.51), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_p=1.0), [0.1, 0.5, 0.15, 0.25]),
        (Sampling(top_p=1e-9), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.6), [0, 2 / 3, 0, 1 / 3]),  # top-p of what top-k left
        (Sampling(temperature=0.5), [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345]),
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(temperature=1e-30), [0, 1, 0, 0]),
    ],
)
def test_distribution(sampling: Sampling, expected: list[float]) -> None:
    torch.testing.assert_close(next_token_probabilities(LOGITS, sampling), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Sampling(**setting)  # type: ignore[arg-type]


def test_prompt_must_be_known_tokens() -> None:
    model = FixedLogits([0.0, 0.0, 0.0])
    for prompt in ([], [3], [-1]):
        with pytest.raises(ValueError, match="prompt"):
            take(model, prompt, 1, Sampling(), vocab=3)
