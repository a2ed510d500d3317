"""Several token datasets of one tokenizer as one, copied in pieces and checked on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.inputs import NAMED_SOURCES, Sources
from megatron_slw.data.layout import AGAIN, dataset_paths
from megatron_slw.data.sidecar import Sidecar, file_sha256
from megatron_slw.data.statistics import document_lengths
from megatron_slw.data.vocabulary import require_same_tokenizer
from megatron_slw.data.writer import IndexedDatasetWriter

_PIECE = 1 << 22  # tokens copied at once


def merge_datasets(
    inputs: Sequence[str], output_prefix: str, say: Callable[[str], None] = lambda line: None
) -> Sidecar:
    """Write the documents of `inputs`, in their order, to the dataset at `output_prefix`; return its sidecar.

    All three files appear at once or not at all. The inputs are read once; what is copied is compared with the
    SHA-256s of their sidecars. A document of several sequences becomes one sequence, as preprocess_data.py writes
    it. `say` gets a line for each input that is done.

    Raises:
        ConfigError: fewer than two inputs, different tokenizers, an input without a sidecar beside one that has
            one, a damaged input, or an output that cannot be written.
    """
    if len(inputs) < 2:
        raise ConfigError(f"--input has {len(inputs)} dataset, but merging takes at least 2.")
    if dataset_paths(output_prefix) in [dataset_paths(prefix) for prefix in inputs]:
        raise ConfigError(f"--output-prefix {output_prefix} is also an --input. Use another --output-prefix.")
    datasets = [IndexedDataset(prefix) for prefix in inputs]
    _require_one_tokenizer(datasets)
    # One tokenizer gives one dtype, unless another program wrote the files.
    dtype = max((dataset.dtype for dataset in datasets), key=lambda dtype: dtype.itemsize)
    with IndexedDatasetWriter(output_prefix, dtype) as writer:
        for dataset in datasets:
            _copy(dataset, writer)
            say(f"{dataset.prefix}  {dataset.num_documents:,} documents  {dataset.num_tokens:,} tokens")
        sidecar = writer.publish(_merged_facts([dataset.sidecar for dataset in datasets]))
        writer.clean_up()
        return sidecar


def _require_one_tokenizer(datasets: Sequence[IndexedDataset]) -> None:
    known = [dataset for dataset in datasets if dataset.sidecar is not None and dataset.sidecar.tokenizer is not None]
    if known and len(known) < len(datasets):
        unknown = next(dataset for dataset in datasets if dataset not in known)
        raise ConfigError(
            f"{unknown.paths.sidecar} is missing or names no tokenizer, but {known[0].prefix} has one: whether they "
            f"are the same cannot be told. {AGAIN}"
        )
    for dataset in known[1:]:
        require_same_tokenizer(known[0], dataset)


def _copy(dataset: IndexedDataset, writer: IndexedDatasetWriter) -> None:
    """Append all documents; compare what was read with the sidecar."""
    lengths = document_lengths(dataset)
    ends = np.cumsum(lengths)
    digest = hashlib.sha256()
    done = tokens_done = 0
    while done < len(lengths):
        # At least one document, whatever its length; the tokens are a view of the file, not a copy.
        stop = max(done + 1, int(np.searchsorted(ends, tokens_done + _PIECE, "right")))
        tokens_stop = int(ends[stop - 1])
        tokens = dataset.tokens[tokens_done:tokens_stop]
        if len(tokens):
            digest.update(tokens.data.cast("B"))
        writer.add_documents(tokens, lengths[done:stop])
        done, tokens_done = stop, tokens_stop
    sidecar = dataset.sidecar
    if sidecar is None:
        return
    checks = [
        (dataset.paths.bin, digest.hexdigest(), sidecar.bin_sha256),
        (dataset.paths.idx, file_sha256(dataset.paths.idx), sidecar.idx_sha256),
    ]
    for path, found, expected in checks:
        if found != expected:
            raise ConfigError(
                f"{path}: its SHA-256 is {found}, but {dataset.paths.sidecar.name} says {expected}: the file is "
                f"damaged. {AGAIN}"
            )


def _merged_facts(sidecars: Sequence[Sidecar | None]) -> Sidecar:
    """What the sidecars say together; the writer fills in counts and SHA-256s."""
    known = [sidecar for sidecar in sidecars if sidecar is not None]
    if len(known) < len(sidecars):
        return Sidecar(None, 0, 0, 0, None, "", "")
    kinds = sorted({kind for sidecar in known for kind in sidecar.skipped_documents})
    text_bytes = [sidecar.text_bytes for sidecar in known if sidecar.text_bytes is not None]
    return Sidecar(
        tokenizer=known[0].tokenizer,
        documents=0,
        empty_documents=sum(sidecar.empty_documents for sidecar in known),
        tokens=0,
        text_bytes=sum(text_bytes) if len(text_bytes) == len(known) else None,
        bin_sha256="",
        idx_sha256="",
        skipped_documents={kind: sum(sidecar.skipped_documents.get(kind, 0) for sidecar in known) for kind in kinds},
        replaced_documents=sum(sidecar.replaced_documents for sidecar in known),
        sources=_merged_sources([sidecar.sources for sidecar in known]),
    )


def _merged_sources(sources: Sequence[Sources | None]) -> Sources | None:
    known = [one for one in sources if one is not None]
    if len(known) < len(sources):
        return None
    return Sources(
        files=sum(one.files for one in known),
        bytes=sum(one.bytes for one in known),
        sha256=hashlib.sha256("".join(one.sha256 for one in known).encode()).hexdigest(),
        first=[file for one in known for file in one.first][:NAMED_SOURCES],
    )
