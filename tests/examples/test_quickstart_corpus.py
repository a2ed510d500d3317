"""The split is the same on every run, and nothing that is held out is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from corpus import (
    Document,
    corpus_sha256,
    file_documents,
    library_documents,
    library_folder,
    parts_of,
    read_texts,
    write_split,
)

from megatron_slw.config.errors import ConfigError

Source = Callable[[], Iterator[Document]]


def texts(*values: str) -> Source:
    """Documents of a user's file."""
    return lambda: (Document(str(i), text, key=text) for i, text in enumerate(values))


def split(source: Source, folder: Path) -> tuple[list[str], list[str]]:
    """The training texts and the held-out ones, as written."""
    write_split(source, folder / "train.jsonl", folder / "held_out.jsonl")
    return read_texts(folder / "train.jsonl"), read_texts(folder / "held_out.jsonl")


def test_split_is_deterministic_and_about_one_in_twenty(tmp_path: Path) -> None:
    source = texts(*(f"text {i}" for i in range(2000)))
    train, held_out = split(source, tmp_path / "a")
    assert split(source, tmp_path / "b") == (train, held_out)
    assert set(train).isdisjoint(held_out)
    assert len(train) + len(held_out) == 2000
    assert 60 <= len(held_out) <= 140
    assert train == sorted(train, key=lambda text: int(text.split()[1])), "the order of the source is kept"


def test_other_documents_do_not_change_where_a_document_goes(tmp_path: Path) -> None:
    some = [f"text {i}" for i in range(300)]
    held_out = split(texts(*some), tmp_path / "a")[1]
    more = split(texts("new", *some, "newer"), tmp_path / "b")[1]
    assert set(held_out) <= set(more)


def test_copies_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    some = [f"text {i}" for i in range(100)]
    train, held_out = split(texts(*some, *some, "", "  \n"), tmp_path)
    assert sorted(train + held_out) == sorted(some)


def test_a_handful_of_documents_holds_out_one(tmp_path: Path) -> None:
    train, held_out = split(texts("one", "two", "three"), tmp_path)
    assert (len(train), len(held_out)) == (2, 1)
    for too_few in ((), ("one",), ("one", "one")):
        with pytest.raises(ConfigError, match="it needs 2"):
            split(texts(*too_few), tmp_path)


def test_bytes_are_those_of_the_text(tmp_path: Path) -> None:
    source = texts("é\n\u2028x", "plain")
    found = write_split(source, tmp_path / "t", tmp_path / "h")
    assert found.bytes == len("é\n\u2028xplain".encode())
    assert found.held_out_bytes == len("".join(read_texts(tmp_path / "h")).encode())


def test_library_is_this_interpreters_and_splits_by_name(tmp_path: Path) -> None:
    names = {document.name for document in library_documents(library_folder())}
    assert {"os.py", "json/decoder.py"} <= names
    assert not any(part in name.split("/") for name in names for part in ("test", "site-packages"))
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    for name in ("a.py", "pkg/b.py", "pkg/test/c.py", "pkg/data.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    found = list(library_documents(tmp_path))
    assert [document.name for document in found] == ["a.py", "pkg/b.py"]
    assert all(document.key == document.name for document in found)


def test_hash_sees_names_texts_and_their_borders() -> None:
    def document(name: str, text: str) -> Source:
        return lambda: iter([Document(name, text, key=name)])

    found = [corpus_sha256(document(*pair)) for pair in (("a", "bc"), ("ab", "c"), ("a", "bd"), ("a", "bc"))]
    assert found[0] == found[3] and len(set(found)) == 3


def test_users_file(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "more": 1}\n')
    assert [(d.name, d.text, d.key) for d in file_documents(path)] == [
        ("0", "one", "one"),
        ("1", "two", "two"),
    ]
    path.write_text('{"text": "one"}\n{"words": "two"}\n')
    with pytest.raises(ConfigError, match="my.jsonl, line 2"):
        list(file_documents(path))
    with pytest.raises(ConfigError, match="does not exist"):
        list(file_documents(tmp_path / "none.jsonl"))


def test_a_single_text_is_cut_so_that_some_of_it_can_be_held_out(tmp_path: Path) -> None:
    text = "".join(f"line {i} of the only book\n" for i in range(400))
    (tmp_path / "book.txt").write_text(text)
    found = [document.text for document in file_documents(tmp_path / "book.txt")]
    assert "".join(found) == text and len(found) == 20
    assert all(part.endswith("\n") for part in found)
    train, held_out = split(partial(file_documents, tmp_path / "book.txt"), tmp_path)
    assert len(train) >= 17 and held_out and set(train).isdisjoint(held_out)
    assert "".join(parts_of("道" * 4321)) == "道" * 4321 and len(parts_of("道" * 4321)) == 20
    assert len(parts_of("one two " * 500)) == 20 and all(part[-1] == " " for part in parts_of("one two " * 500))
    (tmp_path / "book.txt").write_text("too short to cut")
    assert [document.text for document in file_documents(tmp_path / "book.txt")] == ["too short to cut"]


def test_written_files_hold_name_and_text(tmp_path: Path) -> None:
    write_split(partial(iter, [Document("a", "x", "a"), Document("b", "y", "b")]), tmp_path / "t", tmp_path / "h")
    lines = [json.loads(line) for name in "th" for line in (tmp_path / name).read_text().splitlines()]
    assert sorted(lines, key=lambda line: line["name"]) == [
        {"name": "a", "text": "x"},
        {"name": "b", "text": "y"},
    ]
