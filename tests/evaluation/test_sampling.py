"""Drawing follows its settings: probabilities exactly, draws by their counts."""

from __future__ import annotations

import pytest
import torch

from megatron_slw.evaluation.sampling import Sampling, candidates, draw

LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))


def dense(sampling: Sampling) -> torch.Tensor:
    """The probability of every id."""
    probabilities_BK, ids_BK = candidates(LOGITS[None], sampling)
    if ids_BK is None:
        return probabilities_BK[0]
    return torch.zeros(len(LOGITS)).index_copy_(0, ids_BK[0], probabilities_BK[0])


CASES = [
    (Sampling(), [0.1, 0.5, 0.15, 0.25]),
    (Sampling(top_k=2), [0, 2 / 3, 0, 1 / 3]),
    (Sampling(top_k=9), [0.1, 0.5, 0.15, 0.25]),
    (Sampling(top_p=0.5), [0, 1, 0, 0]),
    (Sampling(top_p=0.51), [0, 2 / 3, 0, 1 / 3]),
    (Sampling(top_p=1.0), [0.1, 0.5, 0.15, 0.25]),
    (Sampling(top_p=1e-9), [0, 1, 0, 0]),
    (Sampling(top_k=3, top_p=0.6), [0, 2 / 3, 0, 1 / 3]),  # top-p of what top-k left
    (Sampling(temperature=0.5), [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345]),
    (Sampling(temperature=1e-30), [0, 1, 0, 0]),
]


@pytest.mark.parametrize(("sampling", "expected"), CASES)
def test_distribution(sampling: Sampling, expected: list[float]) -> None:
    torch.testing.assert_close(dense(sampling), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("sampling", "expected"), [*CASES, (Sampling(temperature=0), [0, 1, 0, 0])])
def test_draws_have_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    count = 4000
    rows = LOGITS.expand(count, -1)
    drawn = torch.tensor(draw(rows, sampling, [sampling.generator(row) for row in range(count)]))
    shares = torch.bincount(drawn, minlength=4) / count
    for share, probability in zip(shares.tolist(), expected, strict=True):
        assert (share == probability) if probability in (0, 1) else (abs(share - probability) < 0.035)


def test_what_underflows_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -1e4, -1e4]]).expand(500, -1)
    assert set(draw(logits, Sampling(), [Sampling().generator(row) for row in range(500)])) == {0}


def test_a_row_is_drawn_as_it_would_be_alone() -> None:
    sampling = Sampling(top_k=3, seed=5)
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    together = draw(logits, sampling, [sampling.generator(row) for row in range(6)])
    alone = [draw(logits[row : row + 1], sampling, [sampling.generator(row)])[0] for row in range(6)]
    assert together == alone


@pytest.mark.parametrize("setting", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Sampling(**setting)  # type: ignore[arg-type]
