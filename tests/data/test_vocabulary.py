"""A dataset whose ids the model does not know is refused, by its sidecar or by reading it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data import vocabulary
from megatron_slw.data.vocabulary import check_ids, require_same_tokenizer, resolve_vocab_size, shared_vocab_size
from tests.data.token_datasets import INT32, TOKENIZER, write_dataset


def test_vocabulary_size_comes_from_the_model_or_the_dataset(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [[1, 2]])
    assert resolve_vocab_size(dataset, None) == TOKENIZER.vocab_size == 50_257
    assert resolve_vocab_size(dataset, 50_257) == 50_257
    assert resolve_vocab_size(dataset, 60_000) == 60_000
    with pytest.raises(
        ConfigError, match=r"vocab_size is 50,256, .*/d was made with tokenizer.json, .* 50,257 ids"
    ):
        resolve_vocab_size(dataset, 50_256)


def test_without_a_tokenizer_the_model_must_say_it(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [[1, 2]], tokenizer=None)
    assert resolve_vocab_size(dataset, 10) == 10
    with pytest.raises(ConfigError, match=r"model\.vocab_size is not set and .*d\.json"):
        resolve_vocab_size(dataset, None)


def test_two_datasets_must_share_their_tokenizer(tmp_path: Path) -> None:
    train = write_dataset(tmp_path / "train", [[1]])
    valid = write_dataset(
        tmp_path / "valid", [[1]], tokenizer=replace(TOKENIZER, sha256="cd" * 32, name="other.json")
    )
    unknown = write_dataset(tmp_path / "unknown", [[1]], tokenizer=None)
    require_same_tokenizer(train, train)
    require_same_tokenizer(train, unknown)
    with pytest.raises(
        ConfigError, match=r"train was made with tokenizer.json .*valid with other.json \(cdcd"
    ):
        require_same_tokenizer(train, valid)


def test_datasets_of_a_blend_share_one_vocabulary(tmp_path: Path) -> None:
    small, other = replace(TOKENIZER, vocab_size=50), replace(TOKENIZER, vocab_size=50, sha256="cd" * 32)
    one = write_dataset(tmp_path / "one", [[1, 49]], tokenizer=small)
    unknown = write_dataset(tmp_path / "unknown", [[1, 60]], tokenizer=None)
    foreign = write_dataset(tmp_path / "foreign", [[1]], tokenizer=other)
    assert shared_vocab_size([one, one], None) == 50
    assert shared_vocab_size([unknown, one], 61) == 61
    with pytest.raises(ConfigError, match=r"unknown\.bin: document 0 has token id 60"):
        shared_vocab_size([unknown, one], None)  # the sidecar of the other says 50
    with pytest.raises(ConfigError, match=r"one was made with .* but .*foreign with"):
        shared_vocab_size([unknown, one, foreign], 100)


def test_ids_are_checked_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_PIECE", 4)
    dataset = write_dataset(tmp_path / "d", [[7, 8, 9], [1], [50_256, 0, 65_535, 2, 3], [4, 5]])
    check_ids(dataset, 65_536)
    with pytest.raises(
        ConfigError, match=r"d\.bin: document 2 has token id 65535 \(token 6 of 11\), .* 65,535\."
    ):
        check_ids(dataset, 65_535)
    negative = write_dataset(tmp_path / "n", [[1, 2], [3, -4]], INT32)
    with pytest.raises(ConfigError, match="document 1 has token id -4"):
        check_ids(negative, 100)
