"""Text reaches a model as training saw it, through the tokenizer that the dataset names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.data.tokenizer import TokenizerSpec
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from megatron_slw.evaluation.text import dataset_tokenizer, document_stream, read_documents, tokenizer_spec

TEXTS = ["def f(x):\n    return x\n", "", "é import os", "<|endoftext|> is only text here"]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of TEXTS, with its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    train_byte_level_bpe([str(folder / "t.jsonl")], str(folder / "tokenizer.json"), 280, ["text"])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json"))
    preprocess(PreprocessSettings((str(folder / "t.jsonl"),), str(folder / "t"), spec, append_eod=True))
    return folder / "t_text_document"


def test_stream_is_the_dataset_after_one_end_of_document(prefix: Path) -> None:
    tokenizer = dataset_tokenizer(prefix)
    stream, starts, text_bytes, count = document_stream(tokenizer, TEXTS)
    dataset = IndexedDataset(prefix)
    assert stream[0] == tokenizer.info.eod_id
    assert stream[1:].tolist() == dataset.tokens.tolist()
    first = [1 + dataset.document_start(number) for number in range(dataset.num_documents)]
    assert np.flatnonzero(starts).tolist() == [0, *first]
    assert dataset.sidecar is not None
    assert (text_bytes, count) == (dataset.sidecar.text_bytes, dataset.num_documents)
    assert text_bytes == len("".join(TEXTS).encode())


def test_no_text_is_no_label(prefix: Path) -> None:
    stream, starts, text_bytes, count = document_stream(dataset_tokenizer(prefix), [])
    assert (len(stream), starts.tolist(), text_bytes, count) == (1, [True], 0, 0)


def test_missing_sidecar_or_file_names_the_flag(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--dataset"):
        dataset_tokenizer(tmp_path / "none")
    with pytest.raises(ConfigError, match="--tokenizer-dir says where tokenizer.json lies"):
        dataset_tokenizer(prefix, tmp_path)


def test_another_tokenizer_of_the_same_name_is_refused(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text('{"text": "quite other words, words, words"}\n')
    train_byte_level_bpe([str(tmp_path / "o.jsonl")], str(tmp_path / "tokenizer.json"), 270, ["text"])
    with pytest.raises(ConfigError, match="it is another tokenizer"):
        dataset_tokenizer(prefix, tmp_path)


def test_specs_find_their_files(tmp_path: Path) -> None:
    def spec(kind: str, name: str) -> TokenizerSpec:
        return tokenizer_spec(TokenizerInfo(kind, name, "", 1, None), tmp_path)

    gpt2 = spec("GPT2BPETokenizer", "vocab.json merges.txt")
    assert (gpt2.vocab_file, gpt2.merge_file) == (f"{tmp_path}/vocab.json", f"{tmp_path}/merges.txt")
    assert spec("TikTokenizer", "gpt2").tokenizer_model == "gpt2"
    assert spec("SentencePieceTokenizer", "a.model").tokenizer_model == f"{tmp_path}/a.model"


def test_documents_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two"}\n')
    (tmp_path / "a.txt").write_text("all\nof it")
    assert list(read_documents(tmp_path / "a.jsonl", "body")) == ["one", "two"]
    assert list(read_documents(tmp_path / "a.txt")) == ["all\nof it"]
    with pytest.raises(ConfigError, match="a.jsonl, line 1 has no key"):
        list(read_documents(tmp_path / "a.jsonl"))
