"""AutoTokenizer gives the ids that the dataset was made with, whatever kind of file its tokenizer was."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.byte_pair import bytes_of_characters
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.data.tokenizer_training import train_byte_level_bpe, train_sentencepiece
from megatron_slw.exchange.tokenizer_files import copied_files, merges_of, tokenizer_files

transformers = pytest.importorskip("transformers")
WORDS = (
    "the", " then", " other", "I've", "don't", "1234567", " 12", "  ", "\n\n", " \n", "é", "東京", "🦊", "\t",
    "HTTP", "x/y",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices(WORDS, k=40)) for _ in range(200)] + ["", " ", "a" * 50]


@pytest.fixture(scope="module")
def trained(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json, vocab.json, merges.txt and rank files of one vocabulary, and its text."""
    folder = tmp_path_factory.mktemp("trained")
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "text.jsonl").write_text("".join(lines))
    train_byte_level_bpe([str(folder / "text.jsonl")], str(folder / "tokenizer.json"), 320, ["text"])
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    spelled = bytes_of_characters()
    tokens = [bytes(spelled[c] for c in t) for t in sorted(model["vocab"], key=model["vocab"].get) if "<|" not in t]
    tokens.insert(300, b"qzqzq")  # that no two tokens make: only whole words are looked up
    ranks = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    for name in ("gpt2", "cl100k_base", "o200k_base", "mine"):
        (folder / f"{name}.tiktoken").write_bytes(ranks)
    return folder


SPECS = {
    "tokenizer.json": ("HuggingFaceTokenizer", {"tokenizer_model": "tokenizer.json"}),
    "vocab and merges": ("GPT2BPETokenizer", {"vocab_file": "vocab.json", "merge_file": "merges.txt"}),
    "ranks": ("GPT2BPETokenizer", {"tokenizer_model": "mine.tiktoken"}),
    "cl100k": ("TikTokenizer", {"tokenizer_model": "cl100k_base.tiktoken"}),
    "o200k": ("TikTokenizer", {"tokenizer_model": "o200k_base.tiktoken"}),
}


@pytest.mark.parametrize("case", SPECS)
def test_every_kind_of_tokenizer_gives_its_ids(
    trained: Path, texts: list[str], tmp_path: Path, case: str
) -> None:
    kind, names = SPECS[case]
    spec = TokenizerSpec(kind, **{field: str(trained / name) for field, name in names.items()})
    preprocess(PreprocessSettings((str(trained / "text.jsonl"),), str(tmp_path / "data"), spec))
    files, size, eod = tokenizer_files(f"{tmp_path}/data_text_document", str(trained), 64)
    ours = load_tokenizer(spec)
    assert (size, eod) == (ours.info.vocab_size, ours.info.eod_id)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text('{"model_type": "gpt2"}')
    for name, content in files.items():
        (out / name).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    probe = [*texts, "qzqzq", "qzqzqzq the"]
    ids = ours.encode_batch(probe)
    assert theirs(probe)["input_ids"] == ids
    assert [theirs.decode(line) for line in ids] == probe
    assert (theirs.eos_token_id, theirs.model_max_length) == (eod, 64)
    assert eod is not None and theirs("<|endoftext|>")["input_ids"] == [eod]


def test_merges_are_those_that_the_ranks_were_made_of(trained: Path) -> None:
    library: Any = Tokenizer.from_file(str(trained / "tokenizer.json"))
    model = json.loads(library.to_str())["model"]
    spelled = bytes_of_characters()
    ranks = {bytes(spelled[c] for c in t): i for t, i in model["vocab"].items() if "<|" not in t}
    wanted = [tuple(bytes(spelled[c] for c in part) for part in pair) for pair in model["merges"]]
    assert merges_of(ranks) == wanted


def test_a_folder_is_copied_as_it_is(trained: Path, tmp_path: Path) -> None:
    files, size, eod = copied_files(str(trained))
    assert (size, eod) == (320, 0)
    assert set(files) == {"tokenizer.json", "vocab.json", "merges.txt"}
    assert files["merges.txt"] == (trained / "merges.txt").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "the"}}')
    assert copied_files(str(tmp_path))[2] == Tokenizer.from_file(str(trained / "tokenizer.json")).token_to_id("the")


def test_sentencepiece_has_no_such_file(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"word{i} and {i * 3}"}) + "\n" for i in range(300)))
    train_sentencepiece([str(text)], str(tmp_path / "own.model"), 300)
    spec = TokenizerSpec("SentencePieceTokenizer", tokenizer_model=str(tmp_path / "own.model"))
    preprocess(PreprocessSettings((str(text),), str(tmp_path / "data"), spec))
    with pytest.raises(ConfigError, match="--no-tokenizer"):
        tokenizer_files(f"{tmp_path}/data_text_document", None, 64)
