"""The text: the standard library of the running interpreter, or a file of the user's; some of it held out.

The held-out twentieth is chosen by a hash, of a file's name in the standard library and of a document's text
elsewhere, so that it is the same on every run. A text that occurs twice is taken once: nothing that is held
out is trained.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

from megatron_slw.config.errors import ConfigError
from megatron_slw.evaluation.text import read_documents

LIBRARY = f"Python {sys.version_info.major}.{sys.version_info.minor} standard library"
HELD_OUT_ONE_IN = 20
PARTS, SHORTEST_PART = 20, 50
"""Into how many parts a single document is cut, and how many characters each must have."""
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
"""Installed packages, and test suites, which would be more than half of the text."""


@dataclass(frozen=True)
class Document:
    """One text."""

    name: str
    """File name within the library, or the number of the document in the user's file."""
    text: str
    key: str
    """What is hashed to decide whether it is held out."""

    @property
    def rank(self) -> int:
        """A number of 256 bits that looks random and depends on the key alone."""
        return int(hashlib.sha256(self.key.encode()).hexdigest(), 16)


@dataclass(frozen=True)
class Split:
    """What was written."""

    documents: int
    held_out: int
    bytes: int
    """UTF-8 bytes of all the text, without the JSON around it."""
    held_out_bytes: int


def library_folder() -> Path:
    """Where the modules of the running interpreter lie."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_documents(folder: Path) -> Iterator[Document]:
    """Every module under `folder` in the order of the names, without those that are not UTF-8."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name, path in sorted(files.items()):
        if SKIPPED_FOLDERS.isdisjoint(name.split("/")[:-1]):
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):  # a few files carry another encoding on purpose
                continue
            yield Document(name, text, key=name)


def file_documents(path: Path) -> Iterator[Document]:
    """The documents of a .jsonl file, one object a line with the text under "text", or the one of a .txt file.

    A document that is alone and not very short is cut into PARTS, so that some of it can be held out.

    Raises:
        ConfigError: the file is missing, or a line is no such object; it names the line.
    """
    texts = read_documents(path)
    first = list(islice(texts, 2))
    if len(first) == 1:
        first = parts_of(first[0])
    for number, text in enumerate(chain(first, texts)):
        yield Document(str(number), text, key=text)


def parts_of(text: str, parts: int = PARTS) -> list[str]:
    """Cut a text into about equal parts, after line ends or blanks where they are near; a short one is left whole."""
    size = len(text) // parts
    if size < SHORTEST_PART:
        return [text]
    cuts = [0]
    for number in range(1, parts):
        place = number * size
        near = text[place : place + size // 2]
        found = next((near.index(mark) + 1 for mark in ("\n", " ") if mark in near), 0)
        cuts.append(place + found)
    return [text[begin:end] for begin, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def corpus_sha256(source: Callable[[], Iterator[Document]]) -> str:
    """One hash over every name and text."""
    digest = hashlib.sha256()
    for document in source():
        for part in (document.name, document.text):
            data = part.encode()
            digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def write_split(source: Callable[[], Iterator[Document]], train: Path, held_out: Path) -> Split:
    """Write the two parts as JSONL, {"name", "text"} a line, in the order of the source.

    Args:
        source: gives the documents; it is called twice, so that no more than one text is in memory.

    Raises:
        ConfigError: there are fewer than two different texts.
    """
    first_of: dict[bytes, tuple[int, str]] = {}
    for document in source():
        if document.text.strip():
            first_of.setdefault(_digest(document), (document.rank, document.name))
    if len(first_of) < 2:
        raise ConfigError(f"the corpus has {len(first_of)} different texts; it needs 2 to hold one out.")
    chosen = {name for rank, name in first_of.values() if rank % HELD_OUT_ONE_IN == 0}
    if not chosen or len(chosen) == len(first_of):  # a handful of documents: hold out exactly one
        chosen = {min(first_of.values())[1]}
    names = {name for _, name in first_of.values()}
    train.parent.mkdir(parents=True, exist_ok=True)
    counts = {False: [0, 0], True: [0, 0]}
    with train.open("w", encoding="utf-8") as kept, held_out.open("w", encoding="utf-8") as out:
        for document in source():
            if document.name in names:
                held = document.name in chosen
                _write(out if held else kept, document)
                counts[held][0] += 1
                counts[held][1] += len(document.text.encode())
    return Split(len(names), counts[True][0], counts[False][1] + counts[True][1], counts[True][1])


def read_texts(path: Path) -> list[str]:
    """The texts of a file that `write_split` wrote."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def _digest(document: Document) -> bytes:
    return hashlib.sha256(document.text.encode()).digest()


def _write(file: IO[str], document: Document) -> None:
    file.write(json.dumps({"name": document.name, "text": document.text}, ensure_ascii=False) + "\n")
