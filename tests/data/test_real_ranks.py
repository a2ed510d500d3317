"""OpenAI's own rank files over a whole real corpus: by name, by file and by gigatoken the ids are tiktoken's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public as public

from megatron_slw.data.tiktoken_ranks import PART
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from tests.data.real_corpus import TEXT_BYTES, RealCorpus, rank_files, real_corpus

__all__ = ["rank_files", "real_corpus"]

TOKENS = {"r50k_base": 2_074_249, "cl100k_base": 2_085_455, "o200k_base": 2_079_256}
"""Of all addresses as one text."""


@pytest.fixture
def by_name(rank_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken finds its encodings, whose files it checks by their SHA-256, in a folder instead of the network."""

    def local(url: str, expected_hash: str) -> dict[bytes, int]:
        return tiktoken.load.load_tiktoken_bpe(str(rank_files / url.rsplit("/", 1)[-1]), expected_hash)

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(public, "load_tiktoken_bpe", local)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


@pytest.mark.parametrize("name", TOKENS)
def test_every_id_of_a_whole_corpus(real_corpus: RealCorpus, rank_files: Path, by_name: None, name: str) -> None:
    text = "".join(path.read_bytes().decode("utf-8") for path in real_corpus.texts)
    assert len(text.encode()) == TEXT_BYTES and len(text) > 40 * PART, "taken in many parts"
    expected = tiktoken.get_encoding(name).encode_to_numpy(text, disallowed_special=())
    assert len(expected) == TOKENS[name]
    named = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=name))
    file = TokenizerSpec("TikTokenizer", tokenizer_model=str(rank_files / f"{name}.tiktoken"))
    assert load_tokenizer(file).info.sha256 == named.info.sha256
    assert (named.encode_flat([text]).tokens == expected).all()
    if find_spec("gigatoken"):
        fast = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=file.tokenizer_model, backend="gigatoken"))
        assert (fast.encode_flat([text]).tokens == expected).all()


def test_p50k_by_name_and_by_file_are_one_tokenizer(rank_files: Path, by_name: None) -> None:
    named = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model="p50k_base"))
    file = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=str(rank_files / "p50k_base.tiktoken")))
    assert (named.info.sha256, named.info.eod_id) == (file.info.sha256, 50_256)
