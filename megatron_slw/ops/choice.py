"""Which implementation a setting picks, by rules that need no torch: the model and the memory estimate share them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
INTERFACE = 2
"""Raised when an operator's arguments change: the dispatcher hands them unseen to a kernel built for others."""
BUILT = {kind: f"libmegatron_slw_{kind}.{INTERFACE}.so" for kind in ("cpu", "cuda")}
"""What `csrc/build.py` puts beside this file; a library of another interface is not loaded."""
LOSS_CHUNK = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}
"""Bytes of logits that `linear_cross_entropy` makes at a time: of the order of the last cache, by device."""
LARGE_LOGITS = 2**30
SHORT_LENGTH, WIDE_HEAD = 128, 128


def is_built(device_type: str) -> bool:
    """Whether the kernels for "cpu" or "cuda" lie where they are loaded from."""
    return device_type in BUILT and (FOLDER / BUILT[device_type]).is_file()


def picks_kernels(backend: str, device_type: str) -> bool:
    """Whether `ops.backend` means the fused operators of csrc/ on "cpu" or "cuda"."""
    return backend == "csrc" or (backend == "auto" and is_built(device_type))


def picks_fused_softmax(attention: str, kernels: bool, device_type: str, length: int, head_dim: int) -> bool:
    """Whether `model.attention` computes scores, fused softmax and product, and not PyTorch's attention.

    auto: on the CPU up to 128 tokens with heads up to 128 wide, by the measured table in docs/kernels.md.

    Args:
        attention: the setting.
        kernels: whether those of csrc/ serve the operators.
        device_type: "cpu" or "cuda".
        length: of the sequence.
        head_dim: width of a head.
    """
    if attention != "auto":
        return attention == "fused_softmax"
    return kernels and device_type == "cpu" and length <= SHORT_LENGTH and head_dim <= WIDE_HEAD


def picks_chunked_loss(setting: str, logits_bytes: int, tensor_ranks: int, device_type: str) -> bool:
    """Whether output head and loss are computed a chunk of rows at a time, and not from all logits.

    auto: from more logits than a chunk on where one rank holds the whole vocabulary, which is as fast or faster there
    (the measured table is in docs/kernels.md); with the vocabulary cut over ranks, where the backward pass computes the
    logits again, only beyond a GiB of them.

    Args:
        setting: `ops.cross_entropy`.
        logits_bytes: that all logits of a micro-batch would take on this rank.
        tensor_ranks: over which the vocabulary is cut.
        device_type: "cpu" or "cuda".
    """
    if setting != "auto":
        return setting == "chunked"
    return logits_bytes > (LARGE_LOGITS if tensor_ranks > 1 else LOSS_CHUNK.get(device_type, LARGE_LOGITS))


def rows_of_chunk(columns: int, item_bytes: int, device_type: str) -> int:
    """Rows of logits that make a chunk: at least one, and whole tiles of 128 where there are so many."""
    rows = LOSS_CHUNK.get(device_type, LARGE_LOGITS) // max(1, columns * item_bytes)
    return max(1, rows if rows < 128 else rows // 128 * 128)
