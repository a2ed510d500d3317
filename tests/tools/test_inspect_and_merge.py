"""Inspecting and merging datasets: what is shown is what is there, and damage or a mix of tokenizers is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from megatron_slw.data.inspection import printable
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.statistics import dataset_statistics, length_histogram
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl
from tests.data.token_datasets import INT32, TOKENIZER, write_dataset
from tools import inspect_dataset, merge_datasets


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of TEXTS with its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("data")
    spec = small_tokenizer(folder)
    source = str(write_jsonl(folder / "a.jsonl", TEXTS))
    preprocess(PreprocessSettings((source,), str(folder / "a"), spec, append_eod=True))
    return str(folder / "a_text_document")


def damage(path: str, at: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


def copy_of(prefix: str, folder: Path) -> str:
    for ending in (".bin", ".idx", ".json"):
        (folder / f"copy{ending}").write_bytes(Path(prefix + ending).read_bytes())
    return str(folder / "copy")


def test_statistics_as_text(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_dataset.main([prefix, "--document", "1", "4", "--verify"]) == 0
    out = capsys.readouterr().out
    dataset = IndexedDataset(prefix)
    assert "documents   5 (1 empty ones left out)\n" in out
    assert f"tokens      {dataset.num_tokens:,} as uint16\n" in out
    assert "tokenizer   HuggingFaceTokenizer tokenizer.json, 300 ids, end of document 0, SHA-256 " in out
    assert f"document 1, {len(dataset.document(1))} tokens\n{TEXTS[2]}<|endoftext|>\n" in out
    assert out.count("#####") > 0
    assert f"verified: SHA-256 of .bin and .idx, index of 5 documents, {dataset.num_tokens:,} ids below 300" in out


def test_statistics_as_json(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_dataset.main([prefix, "--document", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    dataset = IndexedDataset(prefix)
    text_bytes = sum(len(text.encode()) for text in TEXTS)
    assert (data["documents"], data["tokens"], data["text_bytes"]) == (5, dataset.num_tokens, text_bytes)
    assert data["bytes_per_token"] == pytest.approx(text_bytes / dataset.num_tokens)
    assert data["decoded"] == {"2": "a<|endoftext|>"} and data["verified"] is False
    assert data["tokenizer"]["vocab_size"] == 300 and data["shortest"] == 2
    assert sum(part["documents"] for part in data["histogram"]) == 5
    assert sum(part["tokens"] for part in data["histogram"]) == dataset.num_tokens


def test_histogram_bins() -> None:
    parts = length_histogram(np.array([0, 1, 2, 3, 4, 7, 8, 2**31 - 1]))
    assert [(part.low, part.high, part.documents) for part in parts[:5]] == [
        (0, 0, 1), (1, 1, 1), (2, 3, 2), (4, 7, 2), (8, 15, 1)
    ]  # fmt: skip
    assert (parts[-1].low, parts[-1].high, parts[-1].tokens) == (2**30, 2**31 - 1, 2**31 - 1)
    assert length_histogram(np.empty(0, np.int64)) == ()


def test_an_empty_dataset_and_one_without_a_sidecar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "empty", [])
    assert inspect_dataset.main([str(tmp_path / "empty"), "--verify"]) == 0
    dataset = write_dataset(tmp_path / "bare", [[1, 2], [3]])
    dataset.paths.sidecar.unlink()
    assert inspect_dataset.main([str(tmp_path / "bare")]) == 0
    assert "tokenizer   unknown" in capsys.readouterr().out
    for flags in (["--verify"], ["--document", "0"]):
        assert inspect_dataset.main([str(tmp_path / "bare"), *flags]) == 2
        assert "bare.json is missing" in capsys.readouterr().err
    assert dataset_statistics(IndexedDataset(tmp_path / "bare")).mean == 1.5


@pytest.mark.parametrize(("ending", "message"), [(".bin", "copy.bin: its SHA-256"), (".idx", "copy.idx")])
def test_verify_sees_a_flipped_bit(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, message: str
) -> None:
    copy = copy_of(prefix, tmp_path)
    damage(copy + ending, -1)
    assert inspect_dataset.main([copy, "--verify"]) == 2
    assert message in capsys.readouterr().err


def test_verify_sees_an_id_beyond_the_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "d", [[1, 2], [300]], tokenizer=replace(TOKENIZER, vocab_size=300))
    assert inspect_dataset.main([str(tmp_path / "d"), "--verify"]) == 2
    assert "d.bin: document 1 has token id 300" in capsys.readouterr().err
    assert inspect_dataset.main([str(tmp_path / "d"), "--document", "1"]) == 2
    assert "document 1 has token ids 300 to 300" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--document", "5"], "--document is 5, but .*has 5 documents, counted from 0"),
        (["--document", "-1"], "--document is -1"),
        (["--document", "0", "--tokenizer-dir", "nowhere"], "--tokenizer-dir says where tokenizer.json lies"),
    ],
)
def test_wrong_flags_are_one_sentence(
    prefix: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert inspect_dataset.main([prefix, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error)


def test_a_document_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2J\r\x00\x9b\n\té") == "a\\x1b[2J\\x0d\\x00\\x9b\n\té"


def test_merging_concatenates(prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "new" / "all")
    assert merge_datasets.main(["--input", prefix, prefix, copy_of(prefix, tmp_path), "--output-prefix", output]) == 0
    one, merged = IndexedDataset(prefix), IndexedDataset(output)
    assert f"all  15 documents  {3 * one.num_tokens:,} tokens" in capsys.readouterr().out
    assert merged.tokens.tolist() == one.tokens.tolist() * 3
    assert [merged.document(5 + i).tolist() for i in range(5)] == [one.document(i).tolist() for i in range(5)]
    verify_checksums(merged)
    assert merged.sidecar is not None and one.sidecar is not None
    assert merged.sidecar.tokenizer == one.sidecar.tokenizer
    assert merged.sidecar.text_bytes == 3 * (one.sidecar.text_bytes or 0)
    assert (merged.sidecar.empty_documents, merged.sidecar.documents) == (3, 15)
    assert merged.sidecar.sources is not None and merged.sidecar.sources.files == 3
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["all.bin", "all.idx", "all.json"]


def test_merging_is_preprocessing_all_at_once(prefix: str, tmp_path: Path) -> None:
    spec = small_tokenizer(tmp_path)
    sources = [str(write_jsonl(tmp_path / "a.jsonl", TEXTS[:3])), str(write_jsonl(tmp_path / "b.jsonl", TEXTS[3:]))]
    parts = []
    for name, inputs in (("a", sources[:1]), ("b", sources[1:]), ("both", sources)):
        preprocess(PreprocessSettings(tuple(inputs), str(tmp_path / name), spec, append_eod=True))
        parts.append(str(tmp_path / f"{name}_text_document"))
    output = str(tmp_path / "merged")
    assert merge_datasets.main(["--input", *parts[:2], "--output-prefix", output]) == 0
    for ending in (".bin", ".idx"):
        assert Path(output + ending).read_bytes() == Path(parts[2] + ending).read_bytes()


def test_long_documents_and_two_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_slw.data.merge._PIECE", 4)
    first = write_dataset(tmp_path / "a", [[1, 2, 3], [], [4] * 9, [5]])
    second = write_dataset(tmp_path / "b", [[6], [7, 8]], INT32)
    arguments = ["--input", first.prefix, second.prefix, "--output-prefix", str(tmp_path / "c")]
    assert merge_datasets.main(arguments) == 0
    merged = IndexedDataset(tmp_path / "c")
    assert merged.dtype == INT32 and merged.lengths.tolist() == [3, 0, 9, 1, 1, 2]
    assert merged.tokens.tolist() == [1, 2, 3, *[4] * 9, 5, 6, 7, 8]


def test_merging_refuses_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlike = replace(TOKENIZER, name="x.json", sha256="cd" * 32)
    one = write_dataset(tmp_path / "one", [[1, 2], [3]]).prefix
    other = write_dataset(tmp_path / "other", [[1]], tokenizer=unlike).prefix
    bare = write_dataset(tmp_path / "bare", [[1]], tokenizer=None).prefix
    broken = write_dataset(tmp_path / "broken", [[1, 2]]).prefix
    damage(broken + ".bin", 0)
    output = str(tmp_path / "out")
    for inputs, message in (
        ([one], "merging takes at least 2"),
        ([one, other], "one was made with tokenizer.json .*other with x.json"),
        ([one, bare], "bare.json is missing or names no tokenizer, but .*one has one"),
        ([one, broken], "broken.bin: its SHA-256 is "),
        ([one, str(tmp_path / "gone")], "gone.idx does not exist"),
        ([one, one + ".bin"], "a dataset is named by its prefix"),
    ):
        assert merge_datasets.main(["--input", *inputs, "--output-prefix", output]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not list(tmp_path.glob("out*"))
    assert merge_datasets.main(["--input", one, one, "--output-prefix", one]) == 2
    assert "is also an --input" in capsys.readouterr().err
    assert merge_datasets.main(["--input", bare, bare, "--output-prefix", output]) == 0
