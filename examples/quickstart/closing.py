"""What the quickstart says at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_slw.train.units import count_text, duration_text

SAMPLE_LINES = 8


def print_closing(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the samples, the table of figures and what to do next."""
    console = console or Console(highlight=False)
    for sample in summary["samples"]:
        lines = sample.splitlines()[:SAMPLE_LINES]
        console.print()
        for number, line in enumerate(lines):
            label = "  sample  " if number == 0 else ""
            console.print(f"{label:<10}{line}", markup=False, soft_wrap=True)
    console.print()
    console.print(figures_table(summary))
    console.print("Next: your own text     make quickstart CORPUS=my.jsonl", markup=False)
    generate = f"python tools/generate.py --load {summary['files']['checkpoint']} --prompt 'def '"
    console.print(f"      more samples      {generate}", markup=False, soft_wrap=True)
    console.print(
        "      a bigger model    deepspeed pretrain_gpt.py --ds-config examples/ds_slw.json --dry-run",
        markup=False,
        soft_wrap=True,
    )


def figures_table(summary: Mapping[str, Any]) -> Table:
    """The closing table."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    ours, gzip = summary["val_bits_per_byte"], summary["gzip_bits_per_byte"]
    against = "below" if summary["below_gzip"] else "NOT below"
    text = summary["corpus"]
    difference = f"{100 * (ours / gzip - 1):+.1f} %"
    rows = {
        "held-out text": f"{ours:.3f} bits/byte, {against} gzip -9: {gzip:.3f} ({difference})",
        "unigram bytes": f"{summary['unigram_bits_per_byte']:.3f} bits/byte",
        "corpus": f"{text['documents']:,} documents, {text['held_out']} of them held out",
        "model": f"{count_text(summary['parameters'])} parameters",
        "trained": f"{count_text(summary['tokens'])} tokens in {summary['steps']:,} steps",
        "speed": f"{summary['tokens_per_s']:,.0f} tokens/s",
        "time": f"{duration_text(summary['wall_s'])}, of it {duration_text(summary['train_s'])} training",
        **{name: str(path) for name, path in summary["files"].items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
