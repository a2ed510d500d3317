"""Kinds of input: each gives the same documents, in an order that only names decide; what is cut short is refused."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import Position, check_inputs, documents, read_pieces
from megatron_slw.data.inputs import describe_sources, expand_inputs, inputs_state
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from tests.data.text_files import TEXTS, write_jsonl


def texts_of(
    paths: Sequence[str],
    size: int = 1 << 20,
    start: Position = Position(),  # noqa: B008
    blank: bool = False,
) -> list[str]:
    return [
        text
        for piece in read_pieces(paths, size, start, blank_lines=blank)
        for path, _, line in piece.documents
        for text in documents(path, line, ["text"]) or ()
    ]


def write_kinds(folder: Path) -> list[str]:
    """The texts as every kind of file that holds many documents."""
    plain = write_jsonl(folder / "plain.jsonl", TEXTS)
    data, half = plain.read_bytes(), plain.stat().st_size // 2
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    frames = [zstandard.compress(data[:half]), zstandard.compress(data[half:])]
    (folder / "a.jsonl.zst").write_bytes(b"".join(frames))
    table = pa.table({"other": [1] * len(TEXTS), "text": TEXTS})
    parquet.write_table(table, folder / "a.parquet", row_group_size=4)
    coded = table.set_column(1, "text", table["text"].cast(pa.large_string()).dictionary_encode())
    parquet.write_table(coded, folder / "coded.parquet", compression="zstd")
    return [str(folder / name) for name in ("plain.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "coded.parquet")]


@pytest.mark.parametrize("size", [1, 300, 1 << 20])
def test_every_kind_gives_the_documents_and_goes_on_from_every_piece(tmp_path: Path, size: int) -> None:
    for path in write_kinds(tmp_path):
        assert texts_of([path], size) == TEXTS, path
        pieces = list(read_pieces([path, path], size))
        assert pieces[-1].read > 0 and sum(len(list(piece.documents)) for piece in pieces) == 2 * len(TEXTS)
        for done, piece in enumerate(pieces, 1):
            rest = [document for later in pieces[done:] for document in later.documents]
            again = list(read_pieces([path, path], size, piece.end))
            assert [document for later in again for document in later.documents] == rest, (path, done)
            assert [later.end for later in again] == [later.end for later in pieces[done:]]


def test_text_files_whole_or_by_blank_lines(tmp_path: Path) -> None:
    text = "\n \none\ntwo\n\n\n\nthree\r\n\r\nfour\n"
    (tmp_path / "a.txt").write_text(text, newline="")
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(text.encode()))
    for name in ("a.txt", "a.txt.zst"):
        path = str(tmp_path / name)
        assert texts_of([path]) == [text]
        assert texts_of([path, path], blank=True) == ["one\ntwo\n", "three\r\n", "four\n"] * 2
        (piece,) = read_pieces([path], blank_lines=True)
        assert [number for _, number, _ in piece.documents] == [3, 8, 10]
        (first, *_) = read_pieces([path], 1, blank_lines=True)
        assert texts_of([path], start=first.end, blank=True) == ["three\r\n", "four\n"]
        (whole,) = read_pieces([path])
        assert texts_of([path, path], start=whole.end) == [text]


@pytest.mark.parametrize("size", [1, 2_000, 1 << 20])
def test_short_text_files_share_a_piece_and_reading_goes_on_between_any_two(tmp_path: Path, size: int) -> None:
    written = [f"text {i}\n" * (i % 7) for i in range(100)]
    for i, text in enumerate(written):
        (tmp_path / f"{i:03}.txt").write_text(text)
    (tmp_path / "long.txt").write_text("x" * 5_000)
    paths = expand_inputs([str(tmp_path)])
    pieces = list(read_pieces(paths, size))
    assert len(pieces) == {1: 101, 2_000: 13, 1 << 20: 1}[size]
    whole = [document for piece in pieces for document in piece.documents]
    assert [(name, number) for name, number, _ in whole] == [(path, 1) for path in paths]
    assert [line for _, _, line in whole] == [*(text.encode() for text in written), b"x" * 5_000]
    assert pieces[-1].read == sum(Path(path).stat().st_size for path in paths)
    done = 0
    for piece in pieces:
        done += len(list(piece.documents))
        again = read_pieces(paths, size, piece.end)
        assert [document for later in again for document in later.documents] == whole[done:]


def test_empty_files_do_not_gather_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    pieces = list(read_pieces([str(tmp_path / "a.txt")] * 10_000))
    assert [len(piece.stretches) for piece in pieces] == [4_096, 4_096, 1_808]


def test_standard_input_is_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", TEXTS).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert texts_of(expand_inputs(["-"]), 100) == TEXTS
    assert inputs_state(["-"]) is None
    with pytest.raises(ConfigError, match="twice"):
        expand_inputs(["-", "-"])


def test_folders_and_patterns_have_a_stable_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("z/b.jsonl", "z/B.txt", "z/a/c.parquet", "z/.hidden.txt", "z/.git/x.txt", "z/notes.md", "a.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    assert expand_inputs(["z", "a.jsonl"]) == ("z/B.txt", "z/a/c.parquet", "z/b.jsonl", "a.jsonl")
    assert expand_inputs(["*.jsonl", "z/*.*", "**/*.jsonl"])[:3] == ("a.jsonl", "z/B.txt", "z/b.jsonl")
    Path("[1].jsonl").write_text("x")
    assert expand_inputs(["[1].jsonl", "a.jsonl", "a.jsonl"]) == ("[1].jsonl", "a.jsonl", "a.jsonl")
    with pytest.raises(ConfigError, match=r"b\*: no file fits this pattern of --input"):
        expand_inputs(["b*"])
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: there is no file in this folder that ends in \.jsonl, "):
        expand_inputs(["empty"])


def test_what_is_cut_short_or_damaged_is_refused(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "plain.jsonl", [text + str(i) for i in range(500) for text in TEXTS]).read_bytes()
    for ending, whole in ((".gz", gzip.compress(plain)), (".zst", zstandard.compress(plain))):
        path = tmp_path / f"a.jsonl{ending}"
        assert len(whole) > 2000
        for size in (0, 3, 10, len(whole) // 2, len(whole) - 1):
            for front in (b"", whole):  # alone, and behind a frame that is complete
                if front and not size:
                    continue
                path.write_bytes(front + whole[:size])
                with pytest.raises(ConfigError, match=rf"a\.jsonl\{ending} cannot be read: "):
                    texts_of([str(path)])
        path.write_bytes(whole + b"trailing garbage")
        with pytest.raises(ConfigError, match="cannot be read: "):
            texts_of([str(path)])


def test_parquet_faults_name_file_and_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [1, 2], "body": ["a", None]}), path)
    with pytest.raises(ConfigError, match=r'a\.parquet: column "text" holds int64, not text'):
        texts_of([str(path)])
    with pytest.raises(ConfigError, match=r'a\.parquet has no column "title" \(it has \["text", "body"\]\)'):
        list(read_pieces([str(path)], keys=["title"]))
    whole, page = path.read_bytes(), parquet.read_metadata(path).row_group(0).column(1).data_page_offset
    for damaged in (whole[:-9], b"", b"no parquet", whole[:page] + b"\xff" * 9 + whole[page + 9 :]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"a\.parquet cannot be read: "):
            list(read_pieces([str(path)], keys=["body"]))


def test_sources_are_told_in_bounded_space(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    size = check_inputs([path])
    few, many = describe_sources([path] * 2), describe_sources([path] * 1_000)
    assert (few.files, few.bytes, few.first) == (2, 2 * size, [[path, size]] * 2)
    assert (many.files, len(many.first)) == (1_000, 200) and few.sha256 != many.sha256
    before = inputs_state([path])
    assert inputs_state([path]) == before
    Path(path).write_bytes(Path(path).read_bytes())
    assert inputs_state([path]) != before


def test_a_tokenizer_is_trained_on_every_kind(tmp_path: Path) -> None:
    files = write_kinds(tmp_path)
    digests = set()
    for number, path in enumerate(files):
        info = train_byte_level_bpe([path], str(tmp_path / f"t{number}.json"), 300, ["text"])
        digests.add(info.sha256)
    folder = tmp_path / "folder"
    folder.mkdir()
    table = pa.table({"body": TEXTS})
    parquet.write_table(table, folder / "b.parquet")
    digests.add(train_byte_level_bpe([str(folder)], str(tmp_path / "t.json"), 300, ["body"]).sha256)
    assert len(digests) == 1
