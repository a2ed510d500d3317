"""SentencePiece models of one's own text: the same file each time, and text that comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.data.tokenizer_training import _SENTENCE, _sentences, train_sentencepiece
from tests.data.text_files import TEXTS, write_jsonl
from tools import train_tokenizer


@pytest.mark.parametrize("unigram", [False, True])
def test_equal_text_gives_equal_files_and_text_comes_back(tmp_path: Path, unigram: bool) -> None:
    source = str(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    infos = [
        train_sentencepiece([source], str(tmp_path / name), 320, unigram=unigram) for name in ("one.model", "two.model")
    ]
    assert infos[0].sha256 == infos[1].sha256 and infos[0].vocab_size == 320 and infos[0].eod_id == 2
    spec = TokenizerSpec("SentencePieceTokenizer", tokenizer_model=str(tmp_path / "one.model"))
    tokenizer = load_tokenizer(spec)
    texts = [*TEXTS, "  two  blanks \n\n\tand a tab, Ωmega 🦊\n", "ﬁ Ⅷ \u00a0 x"]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text and not {0, 1, 2} & set(ids)
    flat = tokenizer.encode_flat(texts)
    assert flat.tokens.tolist() == sum(tokenizer.encode_batch(texts), []) and len(flat.lengths) == len(texts)


def test_a_long_line_is_split_at_blanks_and_nothing_is_lost(tmp_path: Path) -> None:
    text = "word " * 3_000 + "\n\n" + "x" * 5_000 + "\nend"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
    parts = list(_sentences([str(tmp_path / "a.jsonl")], ["text"]))
    assert "".join(parts) == text.replace("\n", "") and max(map(len, parts)) <= _SENTENCE
    assert all(part.endswith(" ") for part in parts[:7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "100", "--output", "m.model"], "--vocab-size is 100, but 256 bytes"),
        (["--vocab-size", "9000", "--output", "m.model"], "SentencePiece cannot train on --input: Vocabulary size"),
        (["--vocab-size", "300", "--output", "m.json"], "m.json, but this type of tokenizer's file ends in .model"),
    ],
)
def test_training_that_cannot_work_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    assert train_tokenizer.main(["--type", "sentencepiece-bpe", "--input", "a.jsonl", *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    arguments = ["--input", str(tmp_path), "--vocab-size", "320", "--output", str(tmp_path / "m.model")]
    assert train_tokenizer.main(["--type", "sentencepiece-unigram", *arguments]) == 0
    assert "m.model  SentencePiece unigram, 320 pieces" in capsys.readouterr().out


def test_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{oops\n')
    with pytest.raises(ConfigError, match="a.jsonl, line 2 is not valid JSON"):
        train_sentencepiece([str(tmp_path / "a.jsonl")], str(tmp_path / "m.model"), 300)
