"""The command lines of preprocessing: exit status, the closing line, one sentence for wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.throughput import ThroughputReport
from tests.data.text_files import TEXTS, write_jsonl
from tools import preprocess_data, train_tokenizer


def test_text_to_tokenizer_to_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, tokenizer = str(write_jsonl(tmp_path / "a.jsonl", TEXTS, "body")), str(tmp_path / "t.json")
    keys = ["--json-keys", "body"]
    arguments = ["--input", source, "--vocab-size", "300", "--output", tokenizer, *keys]
    assert train_tokenizer.main(arguments) == 0
    assert "t.json  byte-level BPE, 300 pieces  " in capsys.readouterr().out
    arguments = ["--input", source, "--output-prefix", str(tmp_path / "out"), *keys, "--append-eod"]
    arguments += [
        "--tokenizer-type",
        "HuggingFaceTokenizer",
        "--tokenizer-model",
        tokenizer,
        "--workers",
        "1",
    ]
    assert preprocess_data.main(arguments) == 0
    dataset = IndexedDataset(tmp_path / "out_body_document")
    out = capsys.readouterr().out
    assert dataset.num_documents == 5 and dataset.num_tokens > 100
    assert f"out_body_document  5 documents  {dataset.num_tokens:,} tokens  0.0 MB of text  " in out
    assert "(1 empty documents left out)" in out


def run_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str, tokenizer: str = "gone.json"
) -> str:
    """Run with arguments that cannot work; return what is printed on stderr."""
    base = [
        "--output-prefix",
        str(tmp_path / "out"),
        "--workers",
        "1",
        "--tokenizer-type",
        "HuggingFaceTokenizer",
    ]
    assert preprocess_data.main([*base, "--tokenizer-model", tokenizer, *arguments]) == 2
    assert not list(tmp_path.glob("out*"))
    return capsys.readouterr().err


def test_wrong_input_is_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    assert run_bad(tmp_path, capsys, "--input", "gone.jsonl") == (
        "gone.jsonl does not exist or is not a file. --input must name text files.\n"
    )
    assert run_bad(tmp_path, capsys, "--input", source) == (
        "gone.json does not exist or is not a file. --tokenizer-model must name the tokenizer's file.\n"
    )
    tokenizer = str(tmp_path / "t.json")
    assert train_tokenizer.main(["--input", source, "--vocab-size", "300", "--output", tokenizer]) == 0
    with open(source, "a") as file:
        file.write("{oops\n")
    error = run_bad(tmp_path, capsys, "--input", source, tokenizer=tokenizer)
    assert "a.jsonl, line 7 is not valid JSON" in error and error.count("\n") == 1
    assert train_tokenizer.main(["--input", source, "--vocab-size", "300", "--output", tokenizer]) == 2
    error = capsys.readouterr().err
    assert "a.jsonl, line 7 is not valid JSON" in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        preprocess_data.main(["--input", source])
    assert caught.value.code == 2


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: ThroughputReport, counts: object) -> None:
        raise KeyboardInterrupt

    source, tokenizer = str(write_jsonl(tmp_path / "a.jsonl", TEXTS)), str(tmp_path / "t.json")
    assert train_tokenizer.main(["--input", source, "--vocab-size", "300", "--output", tokenizer]) == 0
    monkeypatch.setattr(ThroughputReport, "__call__", interrupt)
    arguments = ["--input", source, "--output-prefix", str(tmp_path / "out"), "--workers", "1"]
    arguments += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer]
    assert preprocess_data.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted: nothing was written.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "t.json"]


def test_the_closing_table_counts_bad_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, tokenizer = write_jsonl(tmp_path / "a.jsonl", TEXTS), str(tmp_path / "t.json")
    assert train_tokenizer.main(["--input", str(source), "--vocab-size", "300", "--output", tokenizer]) == 0
    source.write_bytes(source.read_bytes() + b'{oops\n{"text": "\xff"}\n')
    arguments = ["--input", str(tmp_path / "*.jsonl"), "--output-prefix", str(tmp_path / "out"), "--workers", "1"]
    arguments += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer, "--shuffle-documents"]
    capsys.readouterr()
    assert preprocess_data.main([*arguments, "--on-error", "replace"]) == 0
    out, err = capsys.readouterr()
    table = [line.split() for line in out.splitlines()[1:]]
    assert table == [
        ["left", "out:", "broken", "json", "1", "documents"],
        ["bytes", "replaced", "by", "U+FFFD", "1", "documents"],
    ]
    assert f"skipped: {source}, line 7 is not valid JSON" in err and f"replaced: {source}, line 8 " in err
