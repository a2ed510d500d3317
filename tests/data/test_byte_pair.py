"""Byte-level BPE: tiktoken only where it is exact, and vocabulary files refused by file and place."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.byte_pair import PUBLISHED, gpt2_ranks, may_be_cut, read_merges, read_vocab
from megatron_slw.data.tiktoken_ranks import parts_of
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from tests.data.text_files import TEXTS


def trained(texts: list[str], size: int = 400) -> Any:
    """A small byte-level BPE of the reference library."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    return library


@pytest.fixture(scope="module")
def library() -> Any:
    return trained(TEXTS)


@pytest.fixture(scope="module")
def spec(library: Any, tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(path))


def test_a_trained_vocabulary_goes_to_tiktoken(library: Any) -> None:
    ranks = gpt2_ranks(library)
    assert ranks is not None and len(ranks) == library.get_vocab_size()
    assert ranks[b" "] == library.token_to_id("\u0120")


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("aehty bnrow\n\t'sllve0127.,!é東🦊\u00a0A_"), max_size=60) | st.text())
def test_ids_are_those_of_the_reference_library(library: Any, spec: TokenizerSpec, text: str) -> None:
    tokenizer = _loaded(spec)
    assert tokenizer.encode_batch([text]) == [library.encode(text).ids]
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


_cache: dict[TokenizerSpec, Any] = {}


def _loaded(spec: TokenizerSpec) -> Any:
    return _cache.setdefault(spec, load_tokenizer(spec))


def test_random_merges_agree_or_are_left_to_the_library() -> None:
    """Vocabularies that no training makes: the check must see each one for which tiktoken gives other ids."""
    rng = random.Random(0)
    taken = refused = 0
    for _ in range(300):
        library = random_library(rng)
        ranks = gpt2_ranks(library)
        if ranks is None:
            refused += 1
            continue
        taken += 1
        import tiktoken

        encoding = tiktoken.Encoding("random", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
        for _ in range(40):
            text = "".join(rng.choices("abc", k=rng.randrange(1, 12)))
            assert encoding.encode_ordinary(text) == library.encode(text).ids
    assert taken > 30 and refused > 30


def random_library(rng: random.Random) -> Any:
    """Merges drawn at random from three letters and what they make up."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(tokens)}
    pool, merges = ["a", "b", "c"], []
    for _ in range(rng.randrange(2, 9)):
        left, right = rng.choice(pool), rng.choice(pool)
        if left + right in vocab:
            continue
        vocab[left + right] = len(vocab)
        merges.append((left, right))
        pool.append(left + right)
    library = Tokenizer(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return library


@pytest.mark.parametrize("change", ["normalizer", "prefix space", "added token", "merge order", "split", "ignore"])
def test_what_tiktoken_cannot_do_is_left_to_the_library(library: Any, tmp_path: Path, change: str) -> None:
    data = json.loads(library.to_str())
    other = Tokenizer.from_str(library.to_str())
    if change == "normalizer":
        other.normalizer = normalizers.Lowercase()
    elif change == "prefix space":
        other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "added token":
        other.add_tokens([tokenizers.AddedToken("lazy", special=False)])
    elif change == "split":
        other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), other.pre_tokenizer])
    else:
        if change == "ignore":
            data["model"]["ignore_merges"] = True
        else:
            data["model"]["merges"].reverse()
        other = Tokenizer.from_str(json.dumps(data))
    assert gpt2_ranks(other) is None
    other.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(tmp_path)))
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids == other.encode(text).ids


def published(pattern: str) -> Any:
    """A tokenizer.json of today: a published expression, the spelling of bytes; whole words are looked up first."""
    library = trained(TEXTS)
    data = json.loads(library.to_str())
    data["model"]["ignore_merges"] = True
    data["normalizer"] = {"type": "NFC"}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    return Tokenizer.from_str(json.dumps(data))


@pytest.fixture(scope="module")
def cut_libraries(library: Any) -> list[Any]:
    spelled = json.loads(library.to_str())
    spelled["model"]["merges"].reverse()
    return [Tokenizer.from_str(json.dumps(spelled)), *map(published, PUBLISHED)]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet=st.sampled_from("aA1.'/s \n\r\t\u6771\u00e9_\u0301\u00a0\u1100\u1161\x1f"), max_size=80),
    limit=st.integers(min_value=3, max_value=20),
)
def test_a_long_text_has_the_same_ids_in_parts(cut_libraries: list[Any], text: str, limit: int) -> None:
    parts = list(parts_of(text, limit, anywhere=False))
    assert "".join(parts) == text
    for library in cut_libraries:
        ids = [number for part in parts for number in library.encode(part).ids]
        assert ids == library.encode(text).ids


def test_parts_end_only_where_they_may() -> None:
    assert list(parts_of("ab cdefghijk lm", 6, anywhere=False)) == ["ab", " cdefghijk", " lm"]
    assert list(parts_of("abcdefghij", 4, anywhere=False)) == ["abcdefghij"]
    assert list(parts_of("a" * 7 + "\nb c", 4, anywhere=False)) == ["a" * 7 + "\n", "b c"]


@pytest.mark.parametrize("change", ["normalizer", "prefix space", "added token", "expression", "behaviour", "more"])
def test_what_may_change_over_a_cut_is_not_cut(cut_libraries: list[Any], change: str) -> None:
    assert all(map(may_be_cut, cut_libraries)) and len(cut_libraries) == 4
    data = json.loads(cut_libraries[1].to_str())
    split, level = data["pre_tokenizer"]["pretokenizers"]
    if change == "normalizer":
        data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "_"}
    elif change == "prefix space":
        level["add_prefix_space"] = True
    elif change == "added token":
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        data["added_tokens"] = [{"id": 9_999, "content": "a b", **dict.fromkeys(names, False)}]
    elif change == "expression":
        split["pattern"]["Regex"] = ".+"
    elif change == "behaviour":
        split["behavior"] = "MergedWithNext"
    else:
        data["pre_tokenizer"]["pretokenizers"].append({"type": "Digits", "individual_digits": True})
    assert not may_be_cut(Tokenizer.from_str(json.dumps(data)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must map tokens to ids"),
        ("{}", "must map tokens to ids"),
        ("[" * 100_000, "recursion"),
        ("{", "Expecting property name"),
        ("\xff", "can't decode byte"),
        ('{"a": 1, "a": 2}', "has a token twice"),
        ('{"a": 1, "b": 1}', 'the id 1 of "b" is another token\'s too'),
        ('{"a": -1}', 'the id of "a" is -1'),
        ('{"a": 1.5}', 'the id of "a" is 1.5'),
        ('{"a": true}', 'the id of "a" is true'),
        ('{"a": 4000000000}', 'the id of "a" is 4000000000'),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        read_vocab(path)
    assert "vocab.json" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a", 'line 3 must be two tokens, but is "a"'),
        ("a b c", "line 3 must be two tokens"),
        ("a ", "line 3 must be two tokens"),
        ("a c", 'line 3: "c" is not in the vocabulary'),
        ("b a", 'line 3: "ba" is not in the vocabulary'),
    ],
)
def test_a_damaged_merge_is_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "merges.txt"
    path.write_text(f"#version: 0.2\na b\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        read_merges(path, {"a": 0, "b": 1, "ab": 2})


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"vocab.json has 1,099,511,627,776 bytes, more than the 268,435,456"):
        read_vocab(path)
