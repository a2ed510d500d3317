"""tiktoken: rank files, texts too long for its regular expression, and encodings by name."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.data import tiktoken_ranks
from megatron_slw.data.tiktoken_ranks import PART, RANK_FILES, parts_of, read_ranks
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"  ": 256, b"th": 257, b"the": 258, b"\n\n": 259, b" t": 260}


def write_ranks(path: Path, ranks: dict[bytes, int] = RANKS) -> str:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return str(path)


def test_a_rank_file_serves_both_types(tmp_path: Path) -> None:
    ranks = write_ranks(tmp_path / "cl100k_base.tiktoken")
    named = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=ranks))
    gpt2 = load_tokenizer(TokenizerSpec("GPT2BPETokenizer", tokenizer_model=ranks))
    other = load_tokenizer(TokenizerSpec("GPT2BPETokenizer", vocab_file=ranks))
    assert (named.info.eod_id, named.info.vocab_size, named.info.name) == (100257, 100277, "cl100k_base.tiktoken")
    assert (gpt2.info.eod_id, gpt2.info.vocab_size) == (261, 262) and other.info == gpt2.info
    assert gpt2.encode_batch(["the the<|endoftext|>"])[0][:3] == [258, 32, 258]
    assert gpt2.decode([258, 261]) == "the<|endoftext|>" and named.decode([258, 100257]) == "the<|endoftext|>"
    tokens, lengths = gpt2.encode_flat(["the", "", "a b"])
    assert (tokens.tolist(), lengths.tolist()) == ([258, 97, 32, 98], [1, 0, 3])
    assert gpt2.encode_batch([]) == [] and gpt2.encode_batch(["", ""]) == [[], []]


def test_a_rank_file_and_the_encoding_of_its_name_are_one_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, special = RANK_FILES["cl100k_base"]
    encoding = tiktoken.Encoding("cl100k_base", pat_str=pattern, mergeable_ranks=RANKS, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", {"cl100k_base": encoding}.__getitem__)
    ranks = write_ranks(tmp_path / "cl100k_base.tiktoken")
    by_file = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=ranks)).info
    by_name = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model="cl100k_base")).info
    assert by_file.sha256 == by_name.sha256 and by_file.vocab_size == by_name.vocab_size


def test_patterns_and_special_tokens_are_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken_ext.openai_public as public

    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *args, **kwargs: {})
    monkeypatch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda *args, **kwargs: {})
    for name, (pattern, special) in RANK_FILES.items():
        encoding = getattr(public, name)()
        assert (encoding["pat_str"], encoding["special_tokens"]) == (pattern, special)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no token for the byte 0x00"),
        (b"!!! 1\n", 'line 1 must be base64 and a rank, but is "!!! 1"'),
        (b"YQ==\n", "line 1 must be base64 and a rank"),
        (b"YQ== x\n", "line 1 must be base64 and a rank"),
        (b"YQ== -1\n", "line 1 must be base64 and a rank"),
        (b"YQ== 1 2\n", "line 1 must be base64 and a rank"),
        (b"YQ== 99999999999999999999\n", "line 1 must be base64 and a rank"),
        (b"YQ== 99999999\n", "rank of 16,777,216 or more"),
        (b"YQ== 1\nYQ== 2\n", "line 2 has a token or a rank that an earlier line has"),
        (b"YQ== 1\nYg== 1\n", "line 2 has a token or a rank that an earlier line has"),
        (b"\xff\xfe 1\n", "line 1 must be base64 and a rank"),
    ],
)
def test_a_damaged_rank_file_is_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_ranks(path)
    assert "gpt2.tiktoken" in str(caught.value) and "\n" not in str(caught.value)


def test_a_rank_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    ranks = write_ranks(tmp_path / "gpt2.tiktoken", RANKS | {b"x" * 9: 50256})
    with pytest.raises(ConfigError, match="rank 50256 is the id of a special token"):
        load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=ranks))
    with pytest.raises(ConfigError, match=r"mine.tiktoken: the name of a rank file .* gpt2.tiktoken, "):
        load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=str(tmp_path / "mine.tiktoken")))


@pytest.mark.parametrize("name", sorted(RANK_FILES))
@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet=st.sampled_from("aA1.'/s \n\r\t東é_\u00a0\x1f"), max_size=80),
    limit=st.integers(min_value=3, max_value=20),
)
def test_a_text_cut_at_its_own_ends_has_the_same_ids(name: str, text: str, limit: int) -> None:
    pattern, special = RANK_FILES[name]
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=RANKS, special_tokens=special)
    parts = list(parts_of(text, limit))
    assert "".join(parts) == text and all(len(part) <= limit for part in parts)
    own_end = re.compile(r"\S(?= )|\S\n(?=[^\s/])")
    ends = [0]
    for part in parts[:-1]:
        ends.append(ends[-1] + len(part))
    if all(any(match.end() == end for match in own_end.finditer(text)) for end in ends[1:]):
        ids = [token for part in parts for token in encoding.encode_ordinary(part)]
        assert ids == encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
@pytest.mark.parametrize("character", ["A", " ", "\n", "^", "東"])
def test_a_document_of_one_repeated_character(name: str, character: str, tmp_path: Path) -> None:
    """A million of one character, then a word: tiktoken alone panics or keeps a stack of all of it."""
    ranks = write_ranks(tmp_path / f"{name}.tiktoken")
    tokenizer = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model=ranks))
    text = character * 1_100_000 + "x"
    (ids,) = tokenizer.encode_batch([text])
    assert len(ids) <= len(text.encode()) and tokenizer.decode(ids) == text


def test_short_texts_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(parts_of("a" * PART)) == ["a" * PART]
    assert [len(part) for part in parts_of(("a" * 99 + " ") * 5_000)] == [262_099, 237_901]
    monkeypatch.setattr(tiktoken_ranks, "_TAIL", 2)
    assert list(parts_of("ab cdefgh", 6)) == ["ab", " cdefg", "h"]
