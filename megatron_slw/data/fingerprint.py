"""What must be the same for a resumed run to read the tokens it would have read: the data, and how it is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_slw.config.schema import DataConfig
from megatron_slw.data.blend import BlendedWindows, parts_of, whole_shares
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.sidecar import file_sha256
from megatron_slw.data.windows import Windows


def fingerprint(windows: Windows | BlendedWindows, data: DataConfig, seed: int) -> dict[str, Any]:
    """Return the facts of the training data that a checkpoint keeps, as a JSON object.

    The corpora are told apart by their content: a dataset may be moved. Without a sidecar, which has the SHA-256 of
    the tokens, there are the sizes and the SHA-256 of the index, which says the length of each document.

    Args:
        windows: the training split.
        data: where it was opened from.
        seed: of the sampling order.
    """
    shares = whole_shares([corpus.weight for corpus in data.corpora])
    return {
        "corpora": [
            {"share": share, **_corpus(part.dataset)} for share, part in zip(shares, parts_of(windows), strict=True)
        ],
        "split": data.split if data.valid_path is None else None,  # with a valid_path all is trained
        "seed": seed,
        "seq_length": windows.length,
    }


def difference(saved: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Compare two fingerprints: the dotted name of the first fact that differs, and both values; None if none does.

    A SHA-256 that one side does not know (a sidecar was added or lost) is not compared.
    """
    if "corpora" not in saved and len(found["corpora"]) == 1:  # from before there were blends: part of one corpus's
        corpus = found["corpora"][0]
        found = {name: corpus[name] for name in ("documents", "bin_sha256", "tokenizer_sha256")}
        saved = {name: saved.get(name) for name in found}
    one, other = dict(_facts(saved)), dict(_facts(found))
    for name in {**other, **one}:
        known = not name.endswith("sha256") or (one.get(name) is not None and other.get(name) is not None)
        if known and one.get(name) != other.get(name):
            return name, one.get(name), other.get(name)
    return None


def _corpus(dataset: IndexedDataset) -> dict[str, Any]:
    sidecar = dataset.sidecar
    return {
        "tokens": dataset.num_tokens,
        "documents": dataset.num_documents,
        "dtype": dataset.dtype.name,
        "bin_sha256": sidecar.bin_sha256 if sidecar else None,
        "idx_sha256": sidecar.idx_sha256 if sidecar else file_sha256(dataset.paths.idx),
        "tokenizer_sha256": sidecar.tokenizer.sha256 if sidecar and sidecar.tokenizer else None,
    }


def _facts(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested objects and lists, by dotted name."""
    if isinstance(tree, Mapping):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list):
        items = [(str(number), value) for number, value in enumerate(tree)]
        if name:
            items.insert(0, ("count", len(tree)))  # one corpus more is said as that, not as its first fact
    else:
        return [(name, tree)]
    return [fact for key, value in items for fact in _facts(value, f"{name}.{key}" if name else key)]
