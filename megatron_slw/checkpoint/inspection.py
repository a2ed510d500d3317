"""What is in a checkpoint: progress, model, tensors, sizes, configuration; and whether every byte is as it was written.

No tensor is read but by `verify`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from typing import Any, NamedTuple

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import to_json
from megatron_slw.train.units import count_text

_LAYER = re.compile(r"layers\.\d+\.")
_WIDTH, _COLUMN = 110, 14


class Family(NamedTuple):
    """Tensors that each layer has one of, or a single one."""

    name: str
    kinds: tuple[str, ...]
    """weight, exp_avg, ..."""
    shape: tuple[int, ...]
    times: int
    """Layers that have it."""

    @property
    def parameters(self) -> int:
        """Numbers in the weights of all of them."""
        return self.times * prod(self.shape)


def families(checkpoint: Checkpoint) -> list[Family]:
    """The tensors, those that differ in their layer alone as one."""
    found: dict[tuple[str, tuple[int, ...]], list[tuple[str, str]]] = {}
    for key, shape in checkpoint.shapes.items():
        kind, _, name = key.partition("/")
        found.setdefault((_LAYER.sub("layers.*.", name, count=1), shape), []).append((kind, name))
    return [
        Family(family, tuple(dict.fromkeys(kind for kind, _ in members)), shape, len({name for _, name in members}))
        for (family, shape), members in found.items()
    ]


def bytes_by_kind(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of all tensors of a kind: weight, exp_avg, ..."""
    sizes: Counter[str] = Counter()
    for key, shape in checkpoint.shapes.items():
        sizes[key.partition("/")[0]] += 4 * prod(shape)
    return dict(sizes)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything, as a JSON object."""
    return {
        "path": str(checkpoint.path),
        "progress": checkpoint.progress.to_json(),
        "total_steps": checkpoint.plan.total_steps,
        "optimizer_steps": checkpoint.optimizer_steps,
        "loss_scaler": checkpoint.loss_scaler,
        "parameters": sum(prod(shape) for key, shape in checkpoint.shapes.items() if key.startswith("weight/")),
        "bytes_by_kind": bytes_by_kind(checkpoint),
        "files": {name: asdict(record) for name, record in sorted(checkpoint.records.items())},
        "tensors": {key: list(shape) for key, shape in checkpoint.shapes.items()},
        "growth": list(checkpoint.growth.history) if checkpoint.growth is not None else [],
        "dataset": checkpoint.state.dataset,
        "config": to_json(checkpoint.config),
    }


def render(checkpoint: Checkpoint) -> str:
    """The same for people."""
    config, skipped = checkpoint.config, checkpoint.state.skipped
    progress = skipped.trained(checkpoint.plan, checkpoint.progress)
    model, parallel = config.model, config.parallel
    sizes = bytes_by_kind(checkpoint)
    parameters = sizes.get("weight", 0) // 4
    replicas = config.data_parallel_size
    rows = [
        ("checkpoint", str(checkpoint.path)),
        ("progress", f"step {progress.step:,} of {checkpoint.plan.total_steps:,}, {progress.samples:,} samples, "
         f"{count_text(progress.tokens)} tokens trained"),
        ("model", f"{model.num_layers} layers x {model.hidden_size}, {model.num_attention_heads} heads, feed-forward "
         f"{model.ffn_size:,}, length {model.seq_length:,}, vocabulary {model.vocab_size or 0:,}; "
         f"{count_text(parameters)} parameters with padding"),
        ("trained on", f"world size {config.world_size}: TP {parallel.tensor} x PP {parallel.pipeline} x DP "
         f"{replicas}, ZeRO {config.zero_stage}, {config.precision}; any layout resumes it"),
        ("optimizer", f"{config.optimizer.type}, {_steps(checkpoint.optimizer_steps)}"),
        ("size", f"{_bytes(sum(record.size for record in checkpoint.records.values()))} in "
         f"{len(checkpoint.records)} files: " + ", ".join(f"{kind} {_bytes(size)}" for kind, size in sizes.items())),
    ]  # fmt: skip
    if left_out := skipped.steps_before(progress.step):
        rows.append(("left out", f"{left_out:,} steps, for faults that training.on_spike tells of"))
    if checkpoint.growth is not None:
        rows += [("grown", line) for line in checkpoint.growth.history]
    lines = [line for name, value in rows for line in _paragraph(name, value)]
    return "\n".join([*lines, "", *_table(families(checkpoint)), "", *_configuration(to_json(config))])


def verify(checkpoint: Checkpoint) -> str:
    """Read every byte: SHA-256 of all files, then each tensor's dtype and shape; returns what was checked.

    Raises:
        ConfigError: naming the first file that differs.
    """
    checkpoint.verify()
    for key in checkpoint.shapes:
        checkpoint.tensor(key)
    size = sum(record.size for record in checkpoint.records.values())
    return f"verified: SHA-256 of {len(checkpoint.records)} files, {_bytes(size)}; {len(checkpoint.shapes)} tensors"


def _table(rows: list[Family]) -> list[str]:
    shapes = [" x ".join(map(str, row.shape)) for row in rows]
    names = [json.dumps(row.name)[1:-1] for row in rows]  # an index is a file like any other: no control characters
    width, shape_width = max(map(len, [*names, "tensor"])), max(map(len, [*shapes, "shape"]))
    lines = [f"{'tensor':<{width}}  {'shape':<{shape_width}}  {'times':>5}  {'parameters':>13}  kept"]
    for row, name, shape in zip(rows, names, shapes, strict=True):
        kept = ", ".join(row.kinds)
        lines.append(f"{name:<{width}}  {shape:<{shape_width}}  {row.times:>5}  {row.parameters:>13,}  {kept}")
    return lines


def _configuration(config: Mapping[str, Any]) -> list[str]:
    """A paragraph for each section; what is in none comes last."""
    sections = {name: value for name, value in config.items() if isinstance(value, dict)}
    sections["run"] = {name: value for name, value in config.items() if not isinstance(value, dict)}
    lines = []
    for name, values in sections.items():
        shown = [f"{key} {json.dumps(value)}" for key, value in values.items() if value is not None]
        lines += _paragraph(name, ", ".join(shown) or "nothing set")
    return lines


def _paragraph(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, _WIDTH - _COLUMN, break_on_hyphens=False) or [""]
    return [f"{label:<{_COLUMN}}{line}" for label, line in zip([name, *[""] * len(lines)], lines, strict=False)]


def _steps(count: int | None) -> str:
    return "counts no steps" if count is None else f"{count:,} steps"


def _bytes(size: int) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size} bytes"
