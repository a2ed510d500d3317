"""Reading text: the same lines whatever the piece or compression, and bad documents described."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import BadTextError, check_inputs, documents, read_pieces

LINES = [b'{"text": "one"}\n', b"\n", b'{"text": "two"}\r\n', b'{"text": "three"}']


@pytest.mark.parametrize("size", [1, 20, 1_000])
@pytest.mark.parametrize("ending", [".jsonl", ".json.gz"])
def test_pieces_hold_every_line_with_its_number(tmp_path: Path, size: int, ending: str) -> None:
    data = b"".join(LINES)
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    pieces = list(read_pieces([str(path), str(path)], size))
    numbered = [(number, line) for piece in pieces for _, number, line in piece.documents]
    stripped = [line.removesuffix(b"\n") for line in LINES]
    assert [(number, line.removesuffix(b"\n")) for number, line in numbered] == 2 * list(enumerate(stripped, 1))
    assert pieces[-1].read == check_inputs([str(path)] * 2) == 2 * path.stat().st_size
    assert len(pieces) == {1: 8, 20: 3, 1_000: 1}[size], "pieces go on over the end of a file"


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("é\n\n{}\n".encode())
    (piece,) = read_pieces([str(path)], 1)
    assert [documents(name, line, ["text"]) for name, _, line in piece.documents] == [["é\n\n{}\n"]]


def test_documents_of_a_line() -> None:
    line = '{"a": "é \\ud83e\\udd8a", "b": "", "c": 1}'.encode()
    assert documents("x.jsonl", line, ["b", "a"]) == ["", "é 🦊"]
    assert documents("x.jsonl", b" \t\r\n", ["a"]) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a\xff"}', r"is not valid UTF-8 \(byte 11 is 0xff\)"),
        (b'{"text": "a"', r"is not valid JSON \(.*, column 13\)"),
        (b'{"text": "a"} {"text": "b"}', r"is not valid JSON \(Extra data, column 15\)"),
        (b"\xef\xbb\xbf{}", r"is not valid JSON \(Unexpected UTF-8 BOM"),
        (b'["text"]', r'is not a JSON object but \["text"\]'),
        (b'{"txt": "a"}', r'has no key "text" \(it has \["txt"\]\); see --json-keys'),
        (b'{"text": 5}', 'has no text under "text" but 5'),
        (b'{"text": null}', 'has no text under "text" but null'),
        (b'{"text": "a\\ud800b"}', r'has the lone surrogate .* under "text"'),
        (b"[" * 100_000, "is not usable JSON"),
        (b'{"text": ' + b"1" * 5_000 + b"}", "is not usable JSON"),
    ],
)
def test_a_bad_document_is_described(line: bytes, message: str) -> None:
    with pytest.raises(BadTextError, match=message) as caught:
        documents("x.jsonl", line, ["text"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150
    assert caught.value.sentence("x.jsonl", 7) == f"x.jsonl, line 7 {caught.value}."


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.csv: --input must end in \.jsonl, "):
        check_inputs(["a.csv"])
    with pytest.raises(ConfigError, match=r"gone\.jsonl does not exist"):
        check_inputs([str(tmp_path / "gone.jsonl")])
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(b"".join(LINES) * 100)
    for damaged in (whole[:-20], b"no gzip", whole[:15] + b"\xff\xff\xff\xff" + whole[19:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"a\.jsonl\.gz cannot be read: "):
            list(read_pieces([str(path)]))
