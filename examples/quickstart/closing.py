"""What the quickstart says at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_slw.train.units import count_text, duration_text

SAMPLE_LINES, SAMPLE_WIDTH = 6, 100


def print_closing(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the samples, the table of figures and what to do next."""
    console = console or Console(highlight=False)
    for sample in summary["samples"]:
        console.print()
        for number, line in enumerate(excerpt(sample)):
            console.print(f"{'' if number else 'sample':>8}  {line}", markup=False, soft_wrap=True)
    console.print()
    console.print(figures_table(summary))
    console.print()
    for line in next_commands(summary["files"]["checkpoint"]):
        console.print(line, markup=False, soft_wrap=True)


def excerpt(text: str) -> list[str]:
    """The first lines of a sample that are not blank; what a terminal would act on is left out."""
    lines = ["".join(c for c in line if c.isprintable())[:SAMPLE_WIDTH] for line in text.expandtabs(4).splitlines()]
    return [line for line in lines if line.strip()][:SAMPLE_LINES]


def next_commands(checkpoint: str) -> list[str]:
    """What to try now; in a virtual environment that is not on PATH, with the way into it."""
    environment = Path(sys.prefix)
    inside = sys.prefix != sys.base_prefix and environment.is_relative_to(Path.cwd())
    first = f". {environment.relative_to(Path.cwd())}/bin/activate" if inside else None
    commands = {
        "your own text": "make quickstart CORPUS=my.jsonl",
        **({"for the next two": first} if first else {}),
        "more samples": f"python tools/generate.py --load {checkpoint} --prompt 'def read_lines('",
        "a bigger model": "deepspeed pretrain_gpt.py --ds-config examples/ds_slw.json --dry-run",
    }
    return [f"{'' if n else 'Next:':<5} {what:<17} {command}" for n, (what, command) in enumerate(commands.items())]


def figures_table(summary: Mapping[str, Any]) -> Table:
    """The closing table."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    ours, gzip = summary["val_bits_per_byte"], summary["gzip_bits_per_byte"]
    against = "below" if summary["below_gzip"] else "NOT below"
    text = summary["corpus"]
    difference = f"{100 * (ours / gzip - 1):+.1f} %"
    before, after = summary["loss_before"], summary["loss_after"]
    saved = 100 * (1 - summary["flops"] / summary["flops_without_growth"])
    verified = "no" if before is None else f"loss before {before:.5f}, after {after:.5f}"
    rows = {
        "held-out text": f"{ours:.3f} bits/byte, {against} gzip -9: {gzip:.3f} ({difference})",
        "unigram bytes": f"{summary['unigram_bits_per_byte']:.3f} bits/byte",
        "corpus": f"{text['documents']:,} documents, {text['held_out']} of them held out",
        "small model": f"{summary['small']}, {count_text(summary['small_parameters'])} parameters",
        "grown": f"at step {summary['grown_at_step']:,} to {summary['large']}, {count_text(summary['parameters'])}",
        "verified": verified,
        "trained": f"{count_text(summary['tokens'])} tokens in {summary['steps']:,} steps",
        "compute": f"{summary['flops'] / 1e12:.1f} TFLOP, {saved:.0f} % less than with {summary['large']} throughout",
        "speed": f"{summary['tokens_per_s']:,.0f} tokens/s",
        "time": f"{duration_text(summary['wall_s'])}, of it {duration_text(summary['train_s'])} training",
        **{name: str(path) for name, path in summary["files"].items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
