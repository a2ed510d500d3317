"""Tokens per second of our generation beside Hugging Face's `generate` on the same exported model, one CPU process.

    python benchmarks/generate.py [--json FILE] [--profile]

Each model is made once with random weights, exported by tools/export_hf.py and loaded by both. The two take turns,
greedy and with a KV cache, prompts of 16 tokens; the figures are medians of each turn's ratio to the turn beside it. A
turn that did not give the same tokens stops the benchmark. --profile shows where our time goes, by operator.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_slw.checkpoint.inference import load_model
from megatron_slw.config.schema import RunConfig
from megatron_slw.evaluation.decoding import decoder_of, stream_batch
from megatron_slw.evaluation.sampling import Sampling
from megatron_slw.testing import tiny_config, write_random_checkpoint
from tools import export_hf

SHAPES = {"quickstart": (4, 192, 6, 256, 8192), "gpt2_124m": (12, 768, 12, 1024, 50257)}
TURNS = {"quickstart": (9, 96), "gpt2_124m": (5, 24)}
"""Turns, and tokens of each."""
PROMPT = 16
Turn = Callable[[], list[list[int]]]


def make_config(folder: Path, shape: str) -> RunConfig:
    """A model of one of the shapes."""
    layers, hidden, heads, length, vocab = SHAPES[shape]
    return tiny_config(
        folder, model__num_layers=layers, model__hidden_size=hidden, model__num_attention_heads=heads,
        model__seq_length=length, model__vocab_size=vocab, curriculum=None,
    )  # fmt: skip


def our_turn(checkpoint: Path, prompts: list[list[int]], tokens: int) -> Turn:
    """Our decoder with its KV cache."""
    loaded = load_model(checkpoint, verify=False)
    model, decoder = loaded.config.model, decoder_of(loaded.model)

    def turn() -> list[list[int]]:
        texts: list[list[int]] = [[] for _ in prompts]
        steps = stream_batch(
            decoder, prompts, vocab_size=model.vocab_size or 0, length=model.seq_length, tokens=tokens,
            sampling=Sampling(temperature=0),
        )  # fmt: skip
        for step in steps:
            for row, token in step.items():
                texts[row].append(token)
        return texts

    return turn


def their_turn(folder: Path, prompts: list[list[int]], tokens: int) -> Turn:
    """`generate` of transformers, as it is after `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs = torch.tensor(prompts)
    settings = {"do_sample": False, "use_cache": True, "max_new_tokens": tokens, "eos_token_id": None}

    def turn() -> list[list[int]]:
        found = model.generate(inputs, attention_mask=torch.ones_like(inputs), pad_token_id=0, **settings)
        return found[:, PROMPT:].tolist()

    return turn


def measure(turns: dict[str, Turn], count: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of each turn after a first one; the two begin in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for number in range(count + 1):
        texts = []
        for name in sorted(turns, reverse=bool(number % 2)):
            wall, processor = time.perf_counter(), time.process_time()
            texts.append(turns[name]())
            seconds = (time.perf_counter() - wall, time.process_time() - processor)
            if number:
                times[name].append(seconds)
        if texts[0] != texts[1]:
            raise SystemExit("the two do not give the same tokens")
    return times


def compare(shape: str, batch: int, checkpoint: Path, exported: Path) -> dict[str, Any]:
    """One line of the table."""
    count, tokens = TURNS[shape]
    vocab = SHAPES[shape][-1]
    prompts = torch.randint(vocab, (batch, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    turns = {"ours": our_turn(checkpoint, prompts, tokens), "theirs": their_turn(exported, prompts, tokens)}
    times = measure(turns, count)
    made = batch * tokens
    pairs = list(zip(times["ours"], times["theirs"], strict=True))
    return {
        "model": shape, "batch": batch, "tokens": tokens, "turns": count,
        "tokens_per_s": {name: made / statistics.median(wall for wall, _ in t) for name, t in times.items()},
        "ratio_wall": statistics.median(theirs[0] / ours[0] for ours, theirs in pairs),
        "ratio_processor": statistics.median(theirs[1] / ours[1] for ours, theirs in pairs),
    }  # fmt: skip


def profile(checkpoint: Path, shape: str) -> None:
    """Where the time of a batch of one goes."""
    turn = our_turn(checkpoint, [[1] * PROMPT], TURNS[shape][1])
    turn()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        turn()
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    lines = []
    for shape in args.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            load = write_random_checkpoint(make_config(folder, shape), folder / "checkpoints", 1, kinds=("weight",))
            export_hf.main(["--load", str(load), "--save", str(folder / "exported"), "--no-tokenizer"])
            if args.profile:
                profile(load, shape)
                continue
            for batch in args.batches:
                line = compare(shape, batch, load, folder / "exported")
                rates = line["tokens_per_s"]
                print(
                    f"{shape:12s} batch {batch}  ours {rates['ours']:8,.1f} tokens/s  theirs {rates['theirs']:8,.1f}  "
                    f"ratio {line['ratio_wall']:.2f} (processor time {line['ratio_processor']:.2f})", flush=True,
                )  # fmt: skip
                lines.append(line)
    result = {
        "benchmark": "generate", "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "threads": args.threads, "prompt": PROMPT, "lines": lines,
    }  # fmt: skip
    if args.json and lines:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
