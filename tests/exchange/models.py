"""A small GPT-2 as transformers saves it, and a run's settings to import it into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from megatron_slw.config.write import to_tree
from megatron_slw.testing import tiny_config

VOCAB, LENGTH = 301, 48


def random_gpt2(**changes: Any) -> Any:
    """No weight is 0 or 1, no two layers are alike, and eleven of them stand in another order by name."""
    sizes = {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": 32, "n_layer": 11, "n_head": 4}
    torch.manual_seed(0)
    settings = transformers.GPT2Config(**(sizes | {"bos_token_id": 0, "eos_token_id": 0} | changes))
    model = transformers.GPT2LMHeadModel(settings).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.2)
    return model


def write_base(folder: Path, **changes: Any) -> Path:
    """A JSON file for runs of another model, whose sizes must not matter."""
    path = folder / "base.json"
    settings: dict[str, Any] = {"curriculum": None, "data__path": f"{folder}/data", "optimizer__lr": 1e-3}
    path.write_text(json.dumps(to_tree(tiny_config(folder, **(settings | changes)))))
    return path


def logits_of(model: Any, rows: int = 3) -> torch.Tensor:
    """Of fixed tokens, at every length that there is."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.config.vocab_size, (rows, model.config.n_positions), generator=generator)
    with torch.no_grad():
        return model(tokens).logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())
