"""Tokenizers: the ids of the reference libraries, text that stays text, and files refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
import tokenizers

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.sidecar import file_sha256
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def gpt2_spec(spec: TokenizerSpec) -> TokenizerSpec:
    """The same BPE in GPT-2's two files."""
    assert spec.tokenizer_model is not None
    folder = Path(spec.tokenizer_model).parent
    data = json.loads(Path(spec.tokenizer_model).read_text())
    (folder / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return TokenizerSpec("GPT2BPETokenizer", str(folder / "vocab.json"), str(folder / "merges.txt"))


def test_hugging_face_ids_are_the_librarys_and_decode_to_the_text(spec: TokenizerSpec) -> None:
    tokenizer = load_tokenizer(spec)
    reference = tokenizers.Tokenizer.from_file(str(spec.tokenizer_model))
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        if "<|endoftext|>" not in text:
            assert ids == reference.encode(text).ids
    assert max(map(len, tokenizer.encode_batch(TEXTS))) > 50


def test_gpt2_ids_are_the_librarys_and_decode_to_the_text(gpt2_spec: TokenizerSpec) -> None:
    tokenizer = load_tokenizer(gpt2_spec)
    reference = tokenizers.ByteLevelBPETokenizer(gpt2_spec.vocab_file, gpt2_spec.merge_file)
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids == reference.encode(text).ids
        assert tokenizer.decode(ids) == text


def test_special_tokens_in_a_text_are_text(spec: TokenizerSpec, gpt2_spec: TokenizerSpec) -> None:
    for one in (spec, gpt2_spec):
        tokenizer = load_tokenizer(one)
        assert tokenizer.info.eod_id == 0 and tokenizer.decode([0]) == "<|endoftext|>"
        (ids,) = tokenizer.encode_batch(["a<|endoftext|>b"])
        assert 0 not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"


def test_what_a_file_says_of_model_input_does_not_touch_documents(
    spec: TokenizerSpec, tmp_path: Path
) -> None:
    reference = tokenizers.Tokenizer.from_file(str(spec.tokenizer_model))
    reference.enable_truncation(4)
    reference.enable_padding(length=6)
    reference.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    reference.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(tmp_path)))
    assert tokenizer.encode_batch(TEXTS) == load_tokenizer(spec).encode_batch(TEXTS)


def test_info_tells_one_tokenizer_from_another(spec: TokenizerSpec, gpt2_spec: TokenizerSpec) -> None:
    info = load_tokenizer(spec).info
    assert (info.type, info.name, info.vocab_size) == ("HuggingFaceTokenizer", "tokenizer.json", 300)
    assert info.sha256 == file_sha256(Path(str(spec.tokenizer_model)))
    gpt2 = load_tokenizer(gpt2_spec).info
    assert (gpt2.name, gpt2.vocab_size) == ("vocab.json merges.txt", 300)
    parts = [file_sha256(Path(str(path))) for path in (gpt2_spec.vocab_file, gpt2_spec.merge_file)]
    assert gpt2.sha256 == hashlib.sha256("".join(parts).encode()).hexdigest()


def test_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(TEXTS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=120, minloglevel=2,
        byte_fallback=False, character_coverage=1.0, hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = load_tokenizer(
        TokenizerSpec("SentencePieceTokenizer", tokenizer_model=str(tmp_path / "m.model"))
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    text = "The quick brown fox returns self."
    assert (
        tokenizer.encode_batch([text]) == [reference.encode(text)]
        and tokenizer.decode(reference.encode(text)) == text
    )
    assert (tokenizer.info.vocab_size, tokenizer.info.eod_id) == (reference.vocab_size(), reference.eos_id())


def test_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 258}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": encoding}.__getitem__)
    tokenizer = load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model="gpt2"))
    assert tokenizer.encode_batch(["the <|endoftext|>"])[0][:3] == [257, 32, ord("<")]
    assert tokenizer.decode([257, 32, 97]) == "the a"
    assert (tokenizer.info.vocab_size, tokenizer.info.eod_id, len(tokenizer.info.sha256)) == (259, 258, 64)


def test_a_download_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(ConfigError, match=r"the ranks of gpt2 cannot be fetched \(ConnectionError\)"):
        load_tokenizer(TokenizerSpec("TikTokenizer", tokenizer_model="gpt2"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TokenizerSpec("BertWordPiece"), "--tokenizer-type must be GPT2BPETokenizer, .* not BertWordPiece"),
        (TokenizerSpec("GPT2BPETokenizer"), "GPT2BPETokenizer needs --vocab-file"),
        (TokenizerSpec("GPT2BPETokenizer", "bad"), "GPT2BPETokenizer needs --merge-file"),
        (
            TokenizerSpec("GPT2BPETokenizer", "bad", "gone"),
            "gone does not exist or is not a file. --merge-file",
        ),
        (TokenizerSpec("GPT2BPETokenizer", "bad", "bad"), "bad is not a file of this tokenizer type"),
        (TokenizerSpec("HuggingFaceTokenizer"), "HuggingFaceTokenizer needs --tokenizer-model"),
        (TokenizerSpec("HuggingFaceTokenizer", tokenizer_model="gone"), "gone does not exist"),
        (TokenizerSpec("HuggingFaceTokenizer", tokenizer_model="."), "tokenizer.json does not exist"),
        (TokenizerSpec("HuggingFaceTokenizer", tokenizer_model="bad"), "bad is not a file of this tokenizer"),
        (
            TokenizerSpec("SentencePieceTokenizer", tokenizer_model="bad"),
            "bad is not a file of this tokenizer",
        ),
        (
            TokenizerSpec("TikTokenizer", tokenizer_model="gpt9"),
            "must be gpt2, .* for TikTokenizer, not gpt9",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(
    spec: TokenizerSpec, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").write_text('{"not": ["a tokenizer"]}')
    with pytest.raises(ConfigError, match=message) as caught:
        load_tokenizer(spec)
    assert "\n" not in str(caught.value)


def test_training_gives_equal_files_for_equal_text(spec: TokenizerSpec, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    info = train_byte_level_bpe([str(tmp_path / "a.jsonl")], str(tmp_path / "new" / "t.json"), 300)
    assert info.sha256 == load_tokenizer(spec).info.sha256
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.json"]


def test_training_takes_the_pieces_there_are_where_fewer_are_allowed(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    few = train_byte_level_bpe([str(tmp_path / "a.jsonl")], str(tmp_path / "few.json"), 9_000, allow_fewer=True)
    assert 257 < few.vocab_size < 9_000
    same = train_byte_level_bpe([str(tmp_path / "a.jsonl")], str(tmp_path / "same.json"), few.vocab_size)
    assert same.sha256 == few.sha256


@pytest.mark.parametrize(
    ("output", "size", "message"),
    [
        ("t.json", 256, "--vocab-size is 256, but 256 bytes and the end token need 257"),
        ("t.json", 9_000, r"has only [0-9,]+ different pieces, but --vocab-size is 9,000\. Use at most"),
        ("t.txt", 300, "t.txt, but this type of tokenizer's file ends in .json"),
        ("a.jsonl/t.json", 300, "cannot be written: "),
    ],
)
def test_training_that_cannot_work_leaves_nothing(
    tmp_path: Path, output: str, size: int, message: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(ConfigError, match=message):
        train_byte_level_bpe([str(tmp_path / "a.jsonl")], str(tmp_path / output), size)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
