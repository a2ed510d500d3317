"""What is in a token dataset: counts, sizes and the lengths of its documents, from the index alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.sidecar import TokenizerInfo

_BAR = 40


@dataclass(frozen=True)
class LengthBin:
    """Documents with `low` to `high` tokens, both included."""

    low: int
    high: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class DatasetStatistics:
    """The figures of one dataset; lengths are in tokens. None is what its sidecar does not say."""

    prefix: str
    documents: int
    sequences: int
    tokens: int
    dtype: str
    bin_bytes: int
    idx_bytes: int
    tokenizer: TokenizerInfo | None
    text_bytes: int | None
    bytes_per_token: float | None
    empty_documents: int | None
    shortest: int
    median: float
    mean: float
    longest: int
    histogram: tuple[LengthBin, ...]
    """Bins whose lower ends are 0 and the powers of two, without those that are empty at both ends."""

    def to_json(self) -> dict[str, object]:
        """Return the figures as a JSON object."""
        return asdict(self)


def dataset_statistics(dataset: IndexedDataset) -> DatasetStatistics:
    """Reckon the figures. Memory: 8 bytes for each document, a few times; no token is read."""
    lengths = document_lengths(dataset)
    sidecar = dataset.sidecar
    text_bytes = sidecar.text_bytes if sidecar else None
    return DatasetStatistics(
        prefix=dataset.prefix,
        documents=dataset.num_documents,
        sequences=dataset.num_sequences,
        tokens=dataset.num_tokens,
        dtype=dataset.dtype.name,
        bin_bytes=dataset.paths.bin.stat().st_size,
        idx_bytes=dataset.paths.idx.stat().st_size,
        tokenizer=sidecar.tokenizer if sidecar else None,
        text_bytes=text_bytes,
        bytes_per_token=text_bytes / dataset.num_tokens if text_bytes is not None and dataset.num_tokens else None,
        empty_documents=sidecar.empty_documents if sidecar else None,
        shortest=int(lengths.min()) if len(lengths) else 0,
        median=float(np.median(lengths)) if len(lengths) else 0.0,
        mean=float(lengths.mean()) if len(lengths) else 0.0,
        longest=int(lengths.max()) if len(lengths) else 0,
        histogram=length_histogram(lengths),
    )


def document_lengths(dataset: IndexedDataset) -> np.ndarray:
    """Return the tokens of each document, int64, shape (num_documents,)."""
    ends = np.zeros(dataset.num_sequences + 1, np.int64)
    np.cumsum(dataset.lengths, out=ends[1:])
    return np.diff(ends[dataset.document_bounds])


def length_histogram(lengths: np.ndarray) -> tuple[LengthBin, ...]:
    """Count lengths in the bins 0, 1, 2-3, 4-7 and so on, from the first to the last that is not empty."""
    if not len(lengths):
        return ()
    _, exponents = np.frexp(lengths.astype(np.float64))  # 2**(e-1) <= length < 2**e; 0 has e = 0
    counts = np.bincount(exponents)
    # Sums of float64 weights would be rounded beyond 2**53, and lengths are whole numbers.
    tokens = [int(lengths[exponents == e].sum()) if counts[e] else 0 for e in range(len(counts))]
    return tuple(
        LengthBin((1 << e) >> 1, (1 << e) - 1, int(counts[e]), tokens[e])
        for e in range(int(exponents.min()), len(counts))
    )


def report(statistics: DatasetStatistics) -> str:
    """Return the figures as text, with the histogram as bars."""
    one, tokenizer = statistics, statistics.tokenizer
    named = "unknown" if tokenizer is None else (
        f"{tokenizer.type} {tokenizer.name}, {tokenizer.vocab_size:,} ids, end of document "
        f"{'none' if tokenizer.eod_id is None else tokenizer.eod_id}, SHA-256 {tokenizer.sha256[:12]}"
    )  # fmt: skip
    left_out = f" ({one.empty_documents:,} empty ones left out)" if one.empty_documents else ""
    rows = [
        ("dataset", one.prefix),
        ("documents", f"{one.documents:,}{left_out}"),
        ("tokens", f"{one.tokens:,} as {one.dtype}"),
        ("files", f".bin {one.bin_bytes:,} bytes, .idx {one.idx_bytes:,} bytes"),
        ("tokenizer", named),
        ("text", "unknown" if one.text_bytes is None else f"{one.text_bytes:,} bytes"),
        ("bytes/token", "unknown" if one.bytes_per_token is None else f"{one.bytes_per_token:.3f}"),
        ("lengths", f"{one.shortest:,} to {one.longest:,} tokens, median {one.median:,.1f}, mean {one.mean:,.1f}"),
    ]
    if one.sequences != one.documents:
        rows.insert(2, ("sequences", f"{one.sequences:,}"))
    lines = [f"{name:<12}{value}" for name, value in rows]
    most = max((part.documents for part in one.histogram), default=1)
    ends = [f"{part.low:,}" if part.low == part.high else f"{part.low:,}-{part.high:,}" for part in one.histogram]
    if ends:
        lines += ["", f"{'tokens':>{max(map(len, ends))}}  documents"]
    for end, part in zip(ends, one.histogram, strict=True):
        bar = "#" * -(-part.documents * _BAR // most)
        lines.append(f"{end:>{max(map(len, ends))}}  {part.documents:>9,}  {bar}".rstrip())
    return "\n".join(lines)
