"""Sequence-length warmup in a training loop of your own: a small model of the bytes of a text, in seconds on a laptop.

    python examples/pytorch_loop.py [--ds-config FILE] [--text FILE] [--steps 60]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_slw.slw.warmup import SequenceLengthWarmup

HERE = Path(__file__).resolve().parent
ROWS = 8


class ByteModel(nn.Module):
    """Next bytes from bytes; any length goes in."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.layer = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The mean over the labels."""
        logits = self.head(self.layer(self.embedding(inputs))[0])
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print, evaluate; exit status 0."""
    parser = argparse.ArgumentParser(description="Sequence-length warmup in a plain PyTorch loop.")
    parser.add_argument("--ds-config", default=HERE / "own_loop" / "ds_slw.json")
    parser.add_argument("--text", default=__file__)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args(argv)
    warmup = SequenceLengthWarmup.from_config(args.ds_config, args.steps, rows=ROWS)

    torch.manual_seed(1234)
    text = torch.tensor(list(Path(args.text).read_bytes()))
    windows = text.unfold(0, warmup.full_length + 1, 1)
    model = ByteModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(args.steps):
        rows = windows[torch.randint(len(windows), (ROWS,))]
        inputs, labels = warmup((rows[:, :-1], rows[:, 1:]), step)
        loss = model.loss(inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            tokens = warmup.tokens(step + 1)
            print(f"step {step + 1}/{args.steps} | tokens {tokens:,} | len {inputs.shape[1]} | loss {loss.item():.4f}")
    with torch.no_grad():  # at the full length
        rows = windows[:: warmup.full_length]
        print(f"evaluation | len {warmup.full_length} | loss {model.loss(rows[:, :-1], rows[:, 1:]).item():.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
