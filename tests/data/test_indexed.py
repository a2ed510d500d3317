"""The indexed dataset: what is written is what is read, and every kind of damage is refused by name."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.writer import IndexedDatasetWriter
from tests.data.token_datasets import INT32, TOKENIZER, UINT16, counting_dataset, write_dataset

DOCUMENTS = [[7, 8, 9], [1], [50_256, 0, 65_535, 2, 3], [4, 5]]


@pytest.mark.parametrize("dtype", [UINT16, INT32])
def test_what_is_written_is_read(tmp_path: Path, dtype: np.dtype[np.integer]) -> None:
    dataset = write_dataset(tmp_path / "new" / "text_document", DOCUMENTS, dtype)
    assert dataset.dtype == dtype and dataset.tokens.dtype == dtype
    assert (dataset.num_documents, dataset.num_sequences, dataset.num_tokens) == (4, 4, 11)
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert [dataset.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert [dataset.document_start(i) for i in range(5)] == [0, 3, 4, 9, 11]
    assert dataset.tokens.tolist() == sum(DOCUMENTS, [])
    assert dataset.sidecar is not None
    assert (dataset.sidecar.tokenizer, dataset.sidecar.tokens, dataset.sidecar.text_bytes) == (
        TOKENIZER,
        11,
        44,
    )
    assert sorted(path.name for path in dataset.paths.bin.parent.iterdir()) == [
        "text_document.bin", "text_document.idx", "text_document.json",
    ]  # fmt: skip
    verify_checksums(dataset)
    for wrong in (-1, 4):
        with pytest.raises(IndexError, match="it has 4"):
            dataset[wrong]
        with pytest.raises(IndexError, match="it has 4"):
            dataset.document(wrong)


def test_bytes_are_megatrons(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", [[7, 8, 9], [1]])
    assert (tmp_path / "d.bin").read_bytes() == struct.pack("<4H", 7, 8, 9, 1)
    assert (tmp_path / "d.idx").read_bytes() == (
        b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 2, 3) + struct.pack("<2i2q3q", 3, 1, 0, 6, 0, 1, 2)
    )


def test_documents_of_many_sequences_or_none(tmp_path: Path) -> None:
    (tmp_path / "d.bin").write_bytes(struct.pack("<4H", 7, 8, 9, 1))
    (tmp_path / "d.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, 3, 4)
        + struct.pack("<3i3q4q", 1, 2, 1, 0, 2, 6, 0, 2, 2, 3)
    )
    dataset = IndexedDataset(tmp_path / "d")
    assert [dataset.document(i).tolist() for i in range(3)] == [[7, 8, 9], [], [1]]
    assert dataset.sidecar is None
    with pytest.raises(ConfigError, match=r"d\.json is missing"):
        verify_checksums(dataset)


def test_an_empty_dataset_can_be_written_and_read(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [])
    assert (len(dataset), dataset.num_documents, dataset.num_tokens, dataset.document_start(0)) == (
        0,
        0,
        0,
        0,
    )


def test_arrays_outlive_the_reader(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", DOCUMENTS)
    first, bounds = dataset[0], dataset.document_bounds
    del dataset
    gc.collect()
    assert first.tolist() == [7, 8, 9] and bounds.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def put(offset: int, fmt: str, value: int) -> Callable[[bytes], bytes]:
    """A damage: overwrite one field."""
    packed = struct.pack(fmt, value)
    return lambda data: data[:offset] + packed + data[offset + len(packed) :]


LENGTHS, POINTERS, BOUNDS = 34, 34 + 4 * 4, 34 + 12 * 4
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty idx": ("idx", lambda data: b"", "header needs 34 bytes, the file has 0"),
    "half a header": ("idx", lambda data: data[:20], "34 bytes, the file has 20"),
    "magic": ("idx", put(0, "<B", 0), "magic is "),
    "version 0": ("idx", put(9, "<Q", 0), "version is 0"),
    "version 2": ("idx", put(9, "<Q", 2), "version is 2"),
    "dtype 0": ("idx", put(17, "<B", 0), "dtype code is 0, token ids have 4 (int32) and 8 (uint16)"),
    "dtype float": ("idx", put(17, "<B", 6), "dtype code is 6 (float64)"),
    "dtype int64": ("idx", put(17, "<B", 5), "dtype code is 5 (int64)"),
    "dtype of another width": (
        "idx",
        put(17, "<B", 4),
        "pointers[1] is 6, but the sequences before it take 12",
    ),
    "fewer sequences": ("idx", put(18, "<Q", 3), "3 sequences and 5 document bounds need 76 bytes"),
    "more sequences": ("idx", put(18, "<Q", 5), "5 sequences and 5 document bounds need 100 bytes"),
    "2**64-1 sequences": ("idx", put(18, "<Q", 2**64 - 1), "18,446,744,073,709,551,615 sequences"),
    "2**61 sequences": ("idx", put(18, "<Q", 2**61), "2,305,843,009,213,693,952 sequences"),
    "no bounds": ("idx", put(26, "<Q", 0), "document index has 0 entries"),
    "2**64-1 bounds": ("idx", put(26, "<Q", 2**64 - 1), "18,446,744,073,709,551,615 document bounds"),
    "idx cut short": (
        "idx",
        lambda data: data[:-1],
        "need 88 bytes after the header, the file has 87. It is cut",
    ),
    "idx too long": ("idx", lambda data: data + b"\0", "the file has 89. It has bytes too many"),
    "multimodal idx": ("idx", lambda data: data + b"\0" * 4, "multimodal datasets are not supported"),
    "negative length": ("idx", put(LENGTHS + 4, "<i", -1), "lengths[1] is -1, below 0"),
    "length + 1": ("idx", put(LENGTHS, "<i", 4), "pointers[1] is 6, but the sequences before it take 8"),
    "last length + 1": (
        "idx",
        put(LENGTHS + 12, "<i", 3),
        "size is 22 bytes, but the lengths in d.idx need at least 24",
    ),
    "last length - 1": (
        "idx",
        put(LENGTHS + 12, "<i", 1),
        "size is 22 bytes, but the lengths in d.idx need 20",
    ),
    "huge length": ("idx", put(LENGTHS + 12, "<i", 2**31 - 1), "need at least 4,294,967,312"),
    "first pointer": ("idx", put(POINTERS, "<q", 2), "pointers[0] is 2, but the sequences before it take 0"),
    "odd pointer": (
        "idx",
        put(POINTERS + 16, "<q", 9),
        "pointers[2] is 9, but the sequences before it take 8",
    ),
    "overlapping pointer": ("idx", put(POINTERS + 16, "<q", 6), "pointers[2] is 6,"),
    "negative pointer": ("idx", put(POINTERS + 8, "<q", -6), "pointers[1] is -6,"),
    "first bound": ("idx", put(BOUNDS, "<q", 1), "document_index[0] is 1, not 0"),
    "last bound short": (
        "idx",
        put(BOUNDS + 32, "<q", 3),
        "document_index[4], the last, is 3, but there are 4",
    ),
    "last bound far": ("idx", put(BOUNDS + 32, "<q", 10**9), "the last, is 1,000,000,000, but there are 4"),
    "falling bounds": ("idx", put(BOUNDS + 8, "<q", 3), "document_index[2] is 2, after 3"),
    "bound 10**9": ("idx", put(BOUNDS + 16, "<q", 10**9), "document_index[3] is 3, after 1,000,000,000"),
    "negative bound": ("idx", put(BOUNDS + 8, "<q", -1), "document_index[1] is -1, after 0"),
    "empty bin": ("bin", lambda data: b"", "size is 0 bytes, but the lengths in d.idx need at least 22"),
    "bin cut at a token": ("bin", lambda data: data[:-2], "size is 20 bytes"),
    "bin cut in a token": ("bin", lambda data: data[:-1], "size is 21 bytes"),
    "bin too long": ("bin", lambda data: data + b"\0\0", "size is 24 bytes"),
    "sidecar broken": ("json", lambda data: data[:-5], "d.json is not valid JSON"),
    "sidecar version": ("json", lambda data: data.replace(b'"version": 2', b'"version": 9'), "version is 9"),
    "sidecar tokens": (
        "json",
        lambda data: data.replace(b'"tokens": 11', b'"tokens": 12'),
        "tokens is 12, but",
    ),
    "sidecar documents": (
        "json",
        lambda data: data.replace(b'ts": 4', b'ts": 5'),
        "documents is 5, but the dat",
    ),
    "sidecar type": (
        "json",
        lambda data: data.replace(b'"tokens": 11', b'"tokens": "11"'),
        "tokens must be a wh",
    ),
    "sidecar field": ("json", lambda data: data.replace(b'"tokens"', b'"token"'), "missing or unknown"),
    "sidecar tokenizer": ("json", lambda data: data.replace(b'"eod_id"', b'"eos_id"'), "not its five fields"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_with_file_and_field(tmp_path: Path, name: str) -> None:
    kind, damage, message = DAMAGE[name]
    write_dataset(tmp_path / "d", DOCUMENTS)
    path = tmp_path / f"d.{kind}"
    data = damage(path.read_bytes())
    assert data != path.read_bytes(), "the damage must change the file"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        IndexedDataset(tmp_path / "d")
    assert path.name in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_a_flipped_bit_is_caught_by_the_checksums(tmp_path: Path, kind: str) -> None:
    dataset = write_dataset(tmp_path / "d", DOCUMENTS)
    path = tmp_path / f"d.{kind}"
    data = bytearray(path.read_bytes())
    data[5] ^= 16
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"d\.{kind}: its SHA-256 is"):
        verify_checksums(dataset)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(min_size=0, max_size=60), keep_magic=st.booleans())
def test_no_header_crashes_the_reader(tmp_path: Path, header: bytes, keep_magic: bool) -> None:
    write_dataset(tmp_path / "d", DOCUMENTS)
    whole = (tmp_path / "d.idx").read_bytes()
    start = 18 if keep_magic else 0
    data = whole[:start] + header + whole[start + len(header) :]
    (tmp_path / "d.idx").write_bytes(data)
    if data == whole:
        return
    with pytest.raises(ConfigError, match=r"d\.(idx|bin)"):
        IndexedDataset(tmp_path / "d")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 34 + 12 * 4 + 8 * 5 - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_short_index_is_refused(tmp_path: Path, at: int, bit: int) -> None:
    write_dataset(tmp_path / "d", DOCUMENTS)
    data = bytearray((tmp_path / "d.idx").read_bytes())
    data[at] ^= 1 << bit
    (tmp_path / "d.idx").write_bytes(data)
    try:
        dataset = IndexedDataset(tmp_path / "d")
    except ConfigError as error:
        assert "d.idx" in str(error) or "d.bin" in str(error)
    else:  # a bound can move and still be a bound: the checksum sees it
        assert at >= BOUNDS
        with pytest.raises(ConfigError, match=r"d\.idx: its SHA-256"):
            verify_checksums(dataset)


def test_missing_files_and_endings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"d\.idx does not exist\. Set data\.path"):
        IndexedDataset(tmp_path / "d")
    write_dataset(tmp_path / "d", DOCUMENTS)
    (tmp_path / "d.bin").unlink()
    with pytest.raises(ConfigError, match=r"d\.bin does not exist"):
        IndexedDataset(tmp_path / "d")
    with pytest.raises(ConfigError, match=r"Use .*/d\.$"):
        IndexedDataset(tmp_path / "d.idx")
    (tmp_path / "d.bin").mkdir()
    with pytest.raises(ConfigError, match=r"d\.bin cannot be read: Is a directory"):
        IndexedDataset(tmp_path / "d")


def test_a_foreign_json_file_is_not_a_sidecar(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", DOCUMENTS)
    (tmp_path / "d.json").write_text(json.dumps({"text": "my document"}))
    assert IndexedDataset(tmp_path / "d").sidecar is None


def test_checks_reach_beyond_the_first_block(tmp_path: Path) -> None:
    dataset = counting_dataset(tmp_path / "d", [1 + i % 3 for i in range(70_000)])
    count = len(dataset)
    assert count == 70_000 and dataset[69_999][-1] == dataset.num_tokens - 1
    data = (tmp_path / "d.idx").read_bytes()
    for offset, fmt, message in [
        (34 + 4 * 69_000, "<i", r"lengths\[69000\] is -5"),
        (34 + 4 * count + 8 * 69_000, "<q", r"pointers\[69000\] is -5"),
        (34 + 12 * count + 8 * 69_000, "<q", r"document_index\[69000\] is -5"),
    ]:
        (tmp_path / "d.idx").write_bytes(put(offset, fmt, -5)(data))
        with pytest.raises(ConfigError, match=message):
            IndexedDataset(tmp_path / "d")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, UINT16), (65_536, UINT16), (65_537, INT32)])
def test_dtype_is_the_smallest_that_fits(vocab_size: int, dtype: np.dtype[np.integer]) -> None:
    assert dtype_for(vocab_size) == dtype


def test_an_unfinished_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), IndexedDatasetWriter(tmp_path / "d", UINT16) as writer:
        writer.add_document(np.array([1, 2], UINT16))
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["d.bin.partial", "d.lengths.partial"]
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_an_aborted_rewrite_keeps_the_old_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", DOCUMENTS)
    with IndexedDatasetWriter(tmp_path / "d", INT32) as writer:
        writer.add_document(np.array([1]))
    assert IndexedDataset(tmp_path / "d").num_tokens == 11
    assert write_dataset(tmp_path / "d", [[5]], INT32).tokens.tolist() == [5]


def test_what_a_killed_writer_left_is_overwritten_and_two_writers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.bin.partial").write_bytes(b"left from a killed run")
    with IndexedDatasetWriter(tmp_path / "d", UINT16) as writer:
        with pytest.raises(ConfigError, match=r"d\.bin\.partial is being written by another process"):
            IndexedDatasetWriter(tmp_path / "d", UINT16)
        writer.add_document(np.array([3], UINT16))
        writer.finish()
    assert IndexedDataset(tmp_path / "d").tokens.tolist() == [3]


def test_a_writer_that_is_done_does_not_touch_the_next_ones_file(tmp_path: Path) -> None:
    with IndexedDatasetWriter(tmp_path / "d", UINT16) as first:
        first.finish()
        second = IndexedDatasetWriter(tmp_path / "d", UINT16)
    second.add_document(np.array([4], UINT16))
    second.finish()
    assert IndexedDataset(tmp_path / "d").tokens.tolist() == [4]


@pytest.mark.parametrize("third_writer", [False, True])
def test_a_temporary_file_that_became_the_dataset_is_not_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, third_writer: bool
) -> None:
    """Its writer may finish between this one's open and its lock: what was opened is then the real .bin."""
    first = IndexedDatasetWriter(tmp_path / "d", UINT16)
    first.add_document(np.array([4], UINT16))

    def finish_then_lock(file: IO[bytes], operation: int) -> None:
        monkeypatch.undo()
        first.finish()
        if third_writer:
            (tmp_path / "d.bin.partial").write_bytes(b"of a third writer")

    monkeypatch.setattr(fcntl, "flock", finish_then_lock)
    with pytest.raises(ConfigError, match="is being written by another process"):
        IndexedDatasetWriter(tmp_path / "d", UINT16)
    assert IndexedDataset(tmp_path / "d").tokens.tolist() == [4]


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_writer_stopped_between_renames_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    """Old and new have equal sizes: nothing but the missing index can tell that the files do not match."""
    write_dataset(tmp_path / "d", DOCUMENTS)
    calls: list[str] = []
    real = os.replace

    def replace_some(source: Path, target: Path) -> None:
        calls.append(target.name)
        if len(calls) > renamed:
            raise OSError("stopped here")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    with pytest.raises(OSError, match="stopped here"):
        write_dataset(tmp_path / "d", [document[::-1] for document in DOCUMENTS])
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ConfigError, match=r"d\.idx does not exist"):
        IndexedDataset(tmp_path / "d")


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with IndexedDatasetWriter(tmp_path / "d", UINT16) as writer:
        with pytest.raises(ValueError, match="ids 0 to 65536 do not fit uint16"):
            writer.add_document(np.array([0, 65_536]))
        with pytest.raises(ValueError, match="ids -1 to 2 do not fit uint16"):
            writer.add_document(np.array([-1, 2]))
        with pytest.raises(ValueError, match="lengths add up to 3"):
            writer.add_documents(np.array([1, 2], UINT16), np.array([3]))
    with pytest.raises(ValueError, match="uint16 or int32, not int64"):
        IndexedDatasetWriter(tmp_path / "d", np.dtype(np.int64))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        IndexedDatasetWriter(tmp_path / "file" / "d", UINT16)
