"""Every layout trains the same model: losses, gradient norms and final weights against one process.

SGD with clipping active is the sharp test: AdamW divides a wrongly scaled gradient away. Lengths go up and down
(8, 16, 24, 16, 32), each step accumulates four micro-batches or two, and a full-length evaluation stands between two
short steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megatron_slw.testing import WorkerPool, tiny_config
from tests.parity import runs

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"type": "SGD", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1},
}

TP2, PP2, SP = {"tensor": 2}, {"pipeline": 2}, {"tensor": 2, "sequence_parallel": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"world_size": 2},
    "tp2": {"world_size": 2, "parallel": TP2},
    "pp2": {"world_size": 2, "parallel": PP2},
    "tp2-pp2": {"world_size": 4, "parallel": TP2 | PP2},
    "tp2-dp2": {"world_size": 4, "parallel": TP2},
    "pp2-dp2": {"world_size": 4, "parallel": PP2},
    "zero1": {"world_size": 2, "zero_stage": 1},
    "zero2": {"world_size": 2, "zero_stage": 2},
    "zero3": {"world_size": 2, "zero_stage": 3},
    "sp": {"world_size": 2, "parallel": SP},
    "sp-pp2-zero1": {"world_size": 4, "parallel": SP | PP2, "zero_stage": 1},
    "tp2-dp2-zero3": {"world_size": 4, "parallel": TP2, "zero_stage": 3},
    "pp2-dp2-zero1": {"world_size": 4, "parallel": PP2, "zero_stage": 1},
}
TOLERANCE = 1e-5


def run(pool: WorkerPool, folder: Any, optimizer: str, **changes: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Rank 0's losses, norms and evaluation, and the assembled final weights."""
    settings = OPTIMIZERS[optimizer]
    # eps above the rounding noise of a gradient: AdamW turns the sign of a gradient of 1e-10 into a whole step
    config = tiny_config(folder, optimizer=settings | {"eps": 1e-5}, **changes)
    results = pool.run(runs.train, config.world_size, (config, settings["lr"]))
    assert all(r[:3] == results[0][:3] for r in results), "the ranks report different figures"
    return results[0][:3], runs.assemble([r[3] for r in results])


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """One-process results by their settings, so that each is trained once."""
    return {}


def compare(pool: WorkerPool, folder: Any, references: dict[str, Any], optimizer: str, **layout: Any) -> float:
    """Largest relative deviation of a layout from one process with the same model."""
    changes = {k: v for k, v in layout.items() if k.startswith(("model__", "data__"))}
    key = f"{optimizer}/{sorted(changes.items())}"
    if key not in references:
        references[key] = run(pool, folder, optimizer, **changes)
    (losses, norms, valid), weights = references[key]
    (our_losses, our_norms, our_valid), our_weights = run(pool, folder, optimizer, **layout)
    assert len(losses) >= 10 and min(norms) > 0.0, "the reference run did not train"
    assert max(norms) > 0.5, "clipping was never active"
    scalars = np.array([*losses, *norms, valid])
    deviation = np.abs(np.array([*our_losses, *our_norms, our_valid]) - scalars) / scalars
    assert our_weights.keys() == weights.keys(), "the layouts hold different tensors"
    by_tensor = [np.abs(our_weights[k] - w).max() / np.abs(w).max() for k, w in weights.items()]
    print(f"{optimizer} {layout}: scalars {deviation.max():.1e}, weights {max(by_tensor):.1e}")
    return float(max(deviation.max(), *by_tensor))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_one_process(
    pool: WorkerPool, tmp_path: Any, references: dict[str, Any], layout: str, optimizer: str
) -> None:
    assert compare(pool, tmp_path, references, optimizer, **LAYOUTS[layout]) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        # 129 ids pad to 256 rows, which three ranks hold in unequal parts; 60 ids leave the second rank only padding
        {"world_size": 3, "parallel": {"tensor": 3}, "model__num_attention_heads": 3, "model__hidden_size": 36,
         "model__ffn_hidden_size": 72, "model__vocab_size": 129},
        {"world_size": 2, "parallel": TP2, "model__vocab_size": 60},
        {"world_size": 2, "parallel": PP2, "model__vocab_size": 129, "model__num_layers": 3},
    ],
    ids=["tp3-unequal-vocab", "tp2-rank-of-padding", "pp2-unequal-stages"],
)  # fmt: skip
def test_sizes_that_the_layout_does_not_divide(
    pool: WorkerPool, tmp_path: Any, references: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert compare(pool, tmp_path, references, "sgd", **changes) < TOLERANCE


@pytest.mark.parametrize("layout", [{}, {"world_size": 2, "parallel": PP2}, {"world_size": 2, "zero_stage": 3}])
def test_activation_checkpointing_changes_nothing(
    pool: WorkerPool, tmp_path: Any, references: dict[str, Any], layout: dict[str, Any]
) -> None:
    changes = layout | {"training__activation_checkpointing": True}
    assert compare(pool, tmp_path, references, "sgd", **changes) < TOLERANCE
