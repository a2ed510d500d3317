"""Training steps of GPT-2 124M and 1.5B on one GPU: tokens/s and MFU at each length, SDPA against our softmax.

    MEGATRON_SLW_CUDA=1 python csrc/build.py
    python benchmarks/gpu/train.py --json benchmarks/results/train_h200.json     # about five minutes
    python benchmarks/gpu/train.py --tiny                                        # its code paths, on a CPU too

Needs torch and the repository, nothing else (bare.py). No dataset and no engine: forward, loss, backward and AdamW on
random tokens, bf16 weights, the same number of tokens in each step whatever their length. Figures are medians, and the
JSON is written anew after each row, so that what a time limit cuts off is the end of the list alone.
MFU is that of 6 N + 12 L C T FLOPs a token (arXiv 2104.04473) over --peak-tflops.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.bare import stand_in

MISSING = stand_in()

from megatron_slw.config import schema  # noqa: E402
from megatron_slw.model.gpt import GPT  # noqa: E402
from megatron_slw.parallel.groups import one_process_groups  # noqa: E402
from megatron_slw.train.estimate import flops_per_token  # noqa: E402

LENGTHS = (1024, 512, 256, 128, 64, 32, 16, 8)
GOALS = {"124M": 560_000, "1.5B": 56_000}
"""Tokens per second at length 1024 on an H200."""


@dataclass(frozen=True)
class Size:
    """A model and the tokens of a step."""

    layers: int
    hidden: int
    heads: int
    tokens: int
    vocab: int = 50257


SIZES = {"124M": Size(12, 768, 12, 32768), "1.5B": Size(48, 1600, 25, 8192)}
TINY = {"tiny": Size(2, 32, 4, 64, 300)}


@dataclass(frozen=True)
class Variant:
    """Who computes, and the lengths that are measured."""

    model: str
    backend: str
    attention: str
    loss: str
    compiled: bool
    lengths: tuple[int, ...]


def variants(models: dict[str, Size], lengths: tuple[int, ...], compiled: bool) -> Iterator[Variant]:
    """The goals first, then PyTorch's operators and the other losses at full length, then what is compiled."""
    for name in models:
        for attention in ("sdpa", "fused_softmax"):
            yield Variant(name, "auto", attention, "auto", False, lengths)
    for name in models:
        yield Variant(name, "torch", "sdpa", "logits", False, lengths[:1])
        for loss in ("logits", "chunked"):
            yield Variant(name, "auto", "sdpa", loss, False, lengths[:1])
    if compiled:
        for name, backend in (("124M", "auto"), ("124M", "torch"), ("1.5B", "auto")):
            yield Variant(name, backend, "sdpa", "auto", True, lengths[:1])


def config_of(size: Size, variant: Variant) -> schema.RunConfig:
    """Without dropout, as in the figures it is compared with."""
    model = schema.ModelConfig(
        num_layers=size.layers, hidden_size=size.hidden, num_attention_heads=size.heads, seq_length=1024,
        vocab_size=size.vocab, hidden_dropout=0.0, attention_dropout=0.0, attention=variant.attention,
    )  # fmt: skip
    return schema.RunConfig(
        model=model, parallel=schema.ParallelConfig(), data=schema.DataConfig(path="unused"),
        training=schema.TrainingConfig(train_steps=1), evaluation=schema.EvaluationConfig(),
        checkpoint=schema.CheckpointConfig(), logging=schema.LoggingConfig(directory="unused"),
        ops=schema.OpsConfig(backend=variant.backend, cross_entropy=variant.loss),
        optimizer=schema.OptimizerConfig(lr=1e-4), curriculum=None, world_size=1, train_batch_size=1,
        micro_batch_size=1, gradient_accumulation_steps=1, precision="bf16", zero_stage=1, gradient_clipping=0.0,
        deepspeed={},
    )  # fmt: skip


def make_step(config: schema.RunConfig, compiled: bool, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """One optimizer step on token ids (B, T + 1), which returns the loss."""
    with torch.device(device):
        model = GPT(config, one_process_groups(device))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.to(device=device, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device != "cpu")
    run = torch.compile(model) if compiled else model

    def step(ids_BT: torch.Tensor) -> torch.Tensor:
        labels = ids_BT[:, 1:].contiguous()
        weights = torch.full(labels.shape, 1.0 / labels.numel(), device=ids_BT.device)
        loss = run(ids_BT[:, :-1], targets=(labels, weights))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def seconds_of(step: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, steps: int) -> tuple[float, float]:
    """Median time of a step, and the last loss; two steps come before."""
    cuda = ids.is_cuda
    times, loss = [], torch.zeros(())
    for number in range(steps + 2):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        loss = step(ids)
        if cuda:
            torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times), float(loss)


def measure(variant: Variant, size: Size, args: argparse.Namespace, ends: float) -> Iterator[dict[str, object]]:
    """A row for each length while there is time."""
    config = config_of(size, variant)
    step = make_step(config, variant.compiled, args.device)
    for length in variant.lengths:
        if time.monotonic() > ends:
            return
        ids = torch.randint(size.vocab, (max(1, size.tokens // length), length + 1), device=args.device)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds, loss = seconds_of(step, ids, args.steps)
        rate = ids.size(0) * length / seconds
        memory = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0
        mfu = rate * flops_per_token(config.model, length) / args.peak_tflops / 1e12
        row = {key: value for key, value in asdict(variant).items() if key not in ("lengths", "loss")}
        row |= {"cross_entropy": variant.loss, "length": length}
        yield row | {"tokens_per_s": rate, "mfu": mfu, "memory_GiB": memory, "loss": loss, "rows": ids.size(0)}


def main(argv: list[str] | None = None) -> int:
    """Print a row per measurement; write all as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--seconds", type=float, default=280.0, help="begin no measurement after this time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a small model and two lengths: whether it runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.tiny:
        parser.error("this needs a GPU; --tiny runs without one")
    models = TINY if args.tiny else {name: SIZES[name] for name in args.models}
    lengths = (16, 8) if args.tiny else LENGTHS
    ends, rows = time.monotonic() + args.seconds, []
    print(f"{'model':6s}{'operators':10s}{'attention':15s}{'loss':9s}{'length':>7s}{'tokens/s':>12s}{'MFU':>8s}{'GiB':>7s}")
    for variant in variants(models, lengths, compiled=not args.tiny):
        if variant.model not in models or time.monotonic() > ends:
            continue
        for row in measure(variant, models[variant.model], args, ends):
            rows.append(row)
            who = f"{variant.backend}{'+c' if variant.compiled else ''}"
            print(
                f"{variant.model:6s}{who:10s}{variant.attention:15s}{variant.loss:9s}{row['length']:7d}"
                f"{row['tokens_per_s']:12,.0f}{row['mfu']:8.1%}{row['memory_GiB']:7.1f}",
                flush=True,
            )
            if args.json:
                write(args, rows)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return 0


def write(args: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    """All rows so far, with the machine."""
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else "none"
    machine = {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "stand_ins": MISSING}
    content = {"benchmark": "gpu/train", "machine": machine, "peak_tflops": args.peak_tflops, "goals": GOALS}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(content | {"steps": args.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
