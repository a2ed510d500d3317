"""More that can happen to a dataset's files, each refused by name or caught by the checksums; and any header."""

from __future__ import annotations

import gzip
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from megatron_slw.data.layout import HEADER, MAGIC
from tests.data.test_indexed import BOUNDS, DAMAGE, DOCUMENTS, LENGTHS, POINTERS, put
from tests.data.token_datasets import write_dataset

Damage = Callable[[bytes], bytes]


def idx(lengths: list[int], pointers: list[int], bounds: list[int], code: int = 8) -> Damage:
    """Replace the index by one with these fields, right in its sizes."""
    header = HEADER.pack(MAGIC, 1, code, len(lengths), len(bounds))
    body = struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(bounds)}q", *lengths, *pointers, *bounds)
    return lambda data: header + body


def without(first: int, last: int) -> Damage:
    """Drop the bytes [first, last)."""
    return lambda data: data[:first] + data[last:]


# The right index of DOCUMENTS has lengths 3 1 5 2, pointers 0 6 8 18 and bounds 0 1 2 3 4.
REFUSED: dict[str, tuple[str, Damage, str]] = {
    "idx is the bin": ("idx", lambda data: struct.pack("<40H", *range(40)), "magic is "),
    "idx is text": ("idx", lambda data: b"a text that is long enough to be a header", "not a Megatron index"),
    "idx of zeros": ("idx", lambda data: bytes(len(data)), "magic is "),
    "idx of ones": ("idx", lambda data: b"\xff" * len(data), "magic is "),
    "idx compressed": ("idx", gzip.compress, "magic is "),
    "idx of a legacy dataset": ("idx", lambda data: b"TNTIDX\0\0" + data[8:], "magic is b'TNTIDX"),
    "idx begins with a byte too many": ("idx", lambda data: b"\0" + data, "magic is "),
    "idx begins with a byte too few": ("idx", without(0, 1), "magic is "),
    "header in big-endian": ("idx", lambda data: data[:9] + data[9:17][::-1] + data[17:], "version is 72"),
    "header alone": ("idx", lambda data: data[:34], "need 88 bytes after the header, the file has 0"),
    "header twice": ("idx", lambda data: data[:34] + data, "the file has 122. It has bytes too many"),
    "index twice": ("idx", lambda data: data + data, "It has bytes too many"),
    "dtype uint8": ("idx", put(17, "<B", 1), "dtype code is 1 (uint8)"),
    "dtype int8": ("idx", put(17, "<B", 2), "dtype code is 2 (int8)"),
    "dtype int16, of the right width": ("idx", put(17, "<B", 3), "dtype code is 3 (int16)"),
    "dtype float32": ("idx", put(17, "<B", 7), "dtype code is 7 (float32)"),
    "dtype nobody knows": ("idx", put(17, "<B", 255), "dtype code is 255"),
    "one bound fewer": ("idx", put(26, "<Q", 4), "need 80 bytes after the header, the file has 88"),
    "one bound more": ("idx", put(26, "<Q", 6), "need 96 bytes after the header, the file has 88. It is cut"),
    "counts exchanged": ("idx", lambda d: d[:18] + d[26:34] + d[18:26] + d[34:], "need 92 bytes after the header"),
    "a length missing": ("idx", without(LENGTHS, LENGTHS + 4), "the file has 84. It is cut short"),
    "a pointer missing": ("idx", without(POINTERS, POINTERS + 8), "the file has 80. It is cut short"),
    "bounds missing": ("idx", lambda data: data[:BOUNDS], "the file has 48. It is cut short"),
    "lengths in another order": ("idx", idx([1, 3, 5, 2], [0, 6, 8, 18], [0, 1, 2, 3, 4]), "pointers[1] is 6, but"),
    "pointers in another order": ("idx", idx([3, 1, 5, 2], [0, 8, 6, 18], [0, 1, 2, 3, 4]), "pointers[1] is 8, but"),
    "pointers in tokens": ("idx", idx([3, 1, 5, 2], [0, 3, 4, 9], [0, 1, 2, 3, 4]), "pointers[1] is 3, but"),
    "pointers of zeros": ("idx", idx([3, 1, 5, 2], [0] * 4, [0, 1, 2, 3, 4]), "pointers[1] is 0, but"),
    "a far pointer": ("idx", put(POINTERS + 24, "<q", 2**63 - 1), "pointers[3] is 9,223,372,036,854,775,807"),
    "a gap": ("idx", idx([3, 1, 5, 2], [0, 6, 10, 20], [0, 1, 2, 3, 4]), "pointers[2] is 10, but"),
    "lengths of zeros": ("idx", idx([0] * 4, [0] * 4, [0, 1, 2, 3, 4]), "lengths in d.idx need 0"),
    "lowest length": ("idx", put(LENGTHS, "<i", -(2**31)), "lengths[0] is -2147483648, below 0"),
    "negative last length": ("idx", put(LENGTHS + 12, "<i", -2), "lengths[3] is -2, below 0"),
    "a sequence missing": ("idx", idx([3, 1, 5], [0, 6, 8], [0, 1, 2, 3]), "lengths in d.idx need 18"),
    "a sequence too many": (
        "idx", idx([3, 1, 5, 2, 1], [0, 6, 8, 18, 22], [0, 1, 2, 3, 4, 5]), "lengths in d.idx need at least 24",
    ),
    "no sequences": ("idx", idx([], [], [0]), "size is 22 bytes, but the lengths in d.idx need 0"),
    "no documents": ("idx", idx([3, 1, 5, 2], [0, 6, 8, 18], [0]), "the last, is 0, but there are 4"),
    "bounds of zeros": ("idx", idx([3, 1, 5, 2], [0, 6, 8, 18], [0] * 5), "the last, is 0, but there are 4"),
    "bounds in tokens": ("idx", idx([3, 1, 5, 2], [0, 6, 8, 18], [0, 3, 4, 9, 11]), "the last, is 11, but there are 4"),
    "bounds without the first": ("idx", idx([3, 1, 5, 2], [0, 6, 8, 18], [1, 2, 3, 4]), "document_index[0] is 1"),
    "bounds reversed": ("idx", idx([3, 1, 5, 2], [0, 6, 8, 18], [4, 3, 2, 1, 0]), "document_index[0] is 4, not 0"),
    "a bound beyond the end": (
        "idx", idx([3, 1, 5, 2], [0, 6, 8, 18], [0, 1, 5, 3, 4]), "document_index[3] is 3, after 5",
    ),
    "lowest bound": ("idx", put(BOUNDS + 8, "<q", -(2**63)), "document_index[1] is -9,223,372,036,854,775,808"),
    "bin twice": ("bin", lambda data: data + data, "size is 44 bytes"),
    "bin as int32": ("bin", lambda data: np.frombuffer(data, "<u2").astype("<i4").tobytes(), "size is 44 bytes"),
    "bin of one token": ("bin", lambda data: data[:2], "size is 2 bytes"),
    "bin compressed": ("bin", gzip.compress, "size is "),
    "sidecar is empty": ("json", lambda data: b"", "d.json is not valid JSON"),
    "sidecar is no text": ("json", lambda data: b"\xff\xfe" + data, "d.json is not valid JSON"),
    "sidecar with a negative count": ("json", lambda d: d.replace(b'"tokens": 11', b'"tokens": -1'), "whole number"),
    "sidecar with a truth value": ("json", lambda d: d.replace(b'"tokens": 11', b'"tokens": true'), "whole number"),
    "sidecar without a checksum": ("json", lambda d: re.sub(rb'n_sha256": "\w+"', b'n_sha256": 0', d), "a string"),
}  # fmt: skip

# Well-formed, and wrong: only the SHA-256 tells.
CAUGHT: dict[str, tuple[str, Damage]] = {
    **{
        f"bit {bit} of bin byte {byte}": ("bin", lambda data, byte=byte, bit=bit: flipped(data, byte, bit))  # type: ignore[misc]
        for byte, bit in ((0, 0), (7, 7), (13, 3), (21, 5))
    },
    "bin of zeros": ("bin", lambda data: bytes(len(data))),
    "tokens in another order": ("bin", lambda data: data[-2:] + data[:-2]),
    "tokens in big-endian": ("bin", lambda data: np.frombuffer(data, "<u2").astype(">u2").tobytes()),
    "a page of zeros": ("bin", lambda data: data[:8] + bytes(8) + data[16:]),
    "bounds moved": ("idx", put(BOUNDS + 8, "<q", 0)),
    "the index of other documents": ("idx", idx([3, 3, 3, 2], [0, 6, 12, 18], [0, 1, 2, 3, 4])),
    "documents exchanged": ("idx", idx([1, 3, 2, 5], [0, 2, 8, 12], [0, 1, 2, 3, 4])),
}


def flipped(data: bytes, byte: int, bit: int) -> bytes:
    """`data` with one bit the other way."""
    return data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]


def damaged(folder: Path, kind: str, damage: Damage) -> Path:
    """Write the dataset, damage one of its files, and return the file."""
    write_dataset(folder / "d", DOCUMENTS)
    path = folder / f"d.{kind}"
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before, "the damage must change the file"
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_damage_is_refused_with_file_and_field(tmp_path: Path, name: str) -> None:
    kind, damage, message = REFUSED[name]
    path = damaged(tmp_path, kind, damage)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        IndexedDataset(tmp_path / "d")
    assert path.name in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CAUGHT)
def test_damage_that_fits_is_caught_by_the_checksums(tmp_path: Path, name: str) -> None:
    kind, damage = CAUGHT[name]
    path = damaged(tmp_path, kind, damage)
    dataset = IndexedDataset(tmp_path / "d")
    with pytest.raises(ConfigError, match=rf"{path.name}: its SHA-256 is .* the file is damaged"):
        verify_checksums(dataset)


def test_at_least_fifty_kinds_are_refused_by_name() -> None:
    assert len(DAMAGE) + len(REFUSED) >= 90 and not set(DAMAGE) & set(REFUSED) and len(CAUGHT) >= 10


SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, 2**31, 2**32, 2**60, 2**61, 2**63 - 1, 2**63, 2**64 - 1])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.sampled_from([MAGIC, b"TNTIDX\0\0\0"]),
    version=st.sampled_from([0, 1, 1, 1, 2, 2**64 - 1]),
    code=st.sampled_from([4, 8, 8, 0, 1, 5, 9, 255]),
    sequences=SIZES | st.integers(0, 2**64 - 1),
    bounds=SIZES | st.integers(0, 2**64 - 1),
    tail=st.binary(max_size=160),
)
@example(magic=MAGIC, version=1, code=8, sequences=2**62, bounds=2**61, tail=b"")
@example(magic=MAGIC, version=1, code=8, sequences=0, bounds=1, tail=bytes(8))
def test_any_header_is_read_or_refused_in_little_memory(
    tmp_path: Path, magic: bytes, version: int, code: int, sequences: int, bounds: int, tail: bytes
) -> None:
    """Whatever the header announces, nothing is allocated for it before it is compared with the file's size."""
    (tmp_path / "d.bin").write_bytes(b"")
    (tmp_path / "d.idx").write_bytes(HEADER.pack(magic, version, code, sequences, bounds) + tail)
    tracemalloc.start()
    try:
        dataset = IndexedDataset(tmp_path / "d")
    except ConfigError as error:
        assert str(tmp_path / "d.") in str(error) and "\n" not in str(error)
    else:
        assert (len(dataset), dataset.num_documents, dataset.num_tokens) == (sequences, bounds - 1, 0)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20, f"{peak:,} bytes allocated"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(-2, 4) | st.integers(-(2**31), 2**31 - 1), max_size=4),
    shift=st.sampled_from([0, 0, 0, 1, -2, 2**62]),
    bounds=st.lists(st.integers(-1, 5) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    size=st.integers(0, 16),
)
def test_any_index_is_read_right_or_refused(
    tmp_path: Path, lengths: list[int], shift: int, bounds: list[int], size: int
) -> None:
    pointers = [2 * sum(lengths[:number]) + (shift if number else 0) for number in range(len(lengths))]
    (tmp_path / "d.bin").write_bytes(bytes(2 * size))
    (tmp_path / "d.idx").write_bytes(idx(lengths, pointers, bounds)(b""))
    right = (
        min(lengths, default=0) >= 0
        and sum(lengths) == size
        and (not shift or len(lengths) < 2)
        and bounds == sorted(bounds)
        and (bounds[0], bounds[-1]) == (0, len(lengths))
    )
    if right:
        dataset = IndexedDataset(tmp_path / "d")
        assert [len(dataset[number]) for number in range(len(dataset))] == lengths
        assert sum(len(dataset.document(number)) for number in range(dataset.num_documents)) == size
    else:
        with pytest.raises(ConfigError, match=r"d\.(idx|bin)"):
            IndexedDataset(tmp_path / "d")
