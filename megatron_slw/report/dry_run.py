"""`--dry-run`: what a run would be, need and cost, without training and without importing torch."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_slw.config.curriculum_rules import warnings
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.hostfile import read_hostfile
from megatron_slw.config.load import load_config, to_json, with_train_samples, with_vocab_size
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.blend import open_samples
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.vocabulary import resolve_vocab_size
from megatron_slw.slw.batching import MicroBatching, micro_batching
from megatron_slw.slw.compile import compile_plan, plan_of
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.resolve import resolve_schedules
from megatron_slw.train import estimate
from megatron_slw.train.units import count_text

GIB = 2**30
ASSUMED_MFU = 0.4
ASSUMED_PEAK_TFLOPS = 989.0  # dense bf16 of an H100 or H200, where logging.peak_tflops says nothing
_LABEL = 13  # columns of the names at the left
_WIDTH = 110


def main(path: str, overrides: Sequence[str], world_size: int, as_json: bool, hostfile: str | None = None) -> int:
    """Print the dry run of a configuration file; returns the exit status, 2 for a wrong configuration or hostfile."""
    try:
        if hostfile is not None:
            world_size = sum(read_hostfile(hostfile).values())
        config = load_config(path, overrides, world_size)
        if config.model.vocab_size is None:
            dataset = IndexedDataset(config.data.corpora[0].prefix)
            config = with_vocab_size(config, resolve_vocab_size(dataset, None))
        if config.training.train_epochs is not None:
            samples = open_samples(config.data, config.model.seq_length, "train")
            config = with_train_samples(config, len(samples))
        report = dry_run(config, compile_plan(config), name=Path(path).name)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if as_json else render(report))
    return 0


def dry_run(config: RunConfig, plan: Plan, name: str = "run", device: str = "cuda") -> dict[str, Any]:
    """Everything `--dry-run` says, as one JSON object.

    Args:
        config: with model.vocab_size filled in, and training.train_samples in place of train_epochs.
        plan: `compile_plan(config)`.
        name: what to call the run, such as its file's name.
        device: "cuda" or "cpu", on which activations are kept differently.

    Returns:
        Steps are numbered from 1 as in metrics.jsonl, sizes are in GiB (2**30 bytes), memory is that of the
        rank that needs the most. `memory_gib_per_rank.total` is the peak over the steps of all lengths; it is
        less than the sum where the gradients grow while activations go.
    """
    lengths = [run.seq_len for run in plan.runs]
    shapes = sorted({(run.seq_len, run.rows) for run in plan.runs})
    batchings = [(length, micro_batching(config, length, rows)) for length, rows in shapes]
    memories = [estimate.memory(_merged(config, batching), n, device) for n, batching in batchings]
    longest, fullest = memories[-1], max(memories, key=lambda memory: memory.total)
    merged = _merged(config, batchings[0][1])
    shortest = estimate.stage_memory(merged, longest.stage, min(lengths), device)
    flops = estimate.plan_flops(config.model, plan)
    peak_tflops = config.logging.peak_tflops or ASSUMED_PEAK_TFLOPS
    per_second = ASSUMED_MFU * peak_tflops * 1e12 * config.world_size
    return {
        "name": name,
        "configuration": to_json(config),
        "layout": _layout(config, [batchings[0], batchings[-1]]),
        "parameters": estimate.parameters(config.model),
        "parameters_per_rank": max(estimate.stage_parameters(config)),
        "memory_gib_per_rank": {
            "weights": longest.weights / GIB,
            "gradients": longest.gradients / GIB,
            "optimizer": longest.optimizer / GIB,
            "buffers": longest.buffers / GIB,
            "activations_longest": longest.activations / GIB,
            "activations_shortest": shortest.activations / GIB,
            "total": fullest.total / GIB,
            "pipeline_stage": fullest.stage,
            "host_copy": estimate.host_copy(config) / GIB if config.checkpoint.asynchronous else 0.0,
        },
        "steps": plan.total_steps,
        "tokens_trained": plan.tokens_trained,
        "tokens_discarded": plan.tokens_discarded,
        "tokens_repeated": plan.tokens_repeated,
        "samples": plan.progress_at(plan.total_steps).samples,
        "smallest_batch": min(run.rows for run in plan.runs),
        "shortest_length": min(lengths),
        "longest_length": max(lengths),
        "distinct_lengths": len(set(lengths)),
        "full_length_from_step": plan.runs[-1].first_step + 1 if lengths[-1] == plan.full_length else None,
        "plan": plan.to_json(),
        "schedule": _resolved(config),
        "warnings": warnings(config),
        "flops": flops,
        "hours": {"at_mfu": ASSUMED_MFU, "peak_tflops": peak_tflops, "hours": flops / per_second / 3600},
    }


def _resolved(config: RunConfig) -> dict[str, Any]:
    """The schedules with their durations in steps."""
    resolved = resolve_schedules(config, plan_of)
    both = {"curriculum": resolved.curriculum, "batch_warmup": resolved.batch_warmup}
    return {name: schedule and schedule.model_dump(mode="json") for name, schedule in both.items()}


def _layout(config: RunConfig, batchings: list[tuple[int, MicroBatching]]) -> dict[str, Any]:
    """The grid of ranks, and the micro-batches of the shortest and the longest step."""
    return {
        "world_size": config.world_size,
        "tensor": config.parallel.tensor,
        "pipeline": config.parallel.pipeline,
        "data": config.data_parallel_size,
        "sequence_parallel": config.parallel.sequence_parallel,
        "zero_stage": config.zero_stage,
        "precision": config.precision,
        "layers_per_stage": list(estimate.layers_per_stage(config.model.num_layers, config.parallel.pipeline)),
        "micro_batches": [
            {"seq_len": length, "rows": batching.rows, "count": batching.parts} for length, batching in batchings
        ],
    }


def _merged(config: RunConfig, batching: MicroBatching) -> RunConfig:
    """`config` as a step of this many micro-batches runs it."""
    return config.model_copy(update={"micro_batch_size": batching.rows, "gradient_accumulation_steps": batching.parts})


def render(report: dict[str, Any]) -> str:
    """The object of `dry_run` as aligned lines for a person."""
    layout, model = report["layout"], report["configuration"]["model"]
    ranks = "rank" if layout["world_size"] == 1 else "ranks"
    sequence = " (sequence parallel)" if layout["sequence_parallel"] else ""
    lines = [
        f"{report['name']} on {layout['world_size']:,} {ranks}: TP {layout['tensor']}{sequence} x "
        f"PP {layout['pipeline']} x DP {layout['data']}, ZeRO {layout['zero_stage']}, {layout['precision']}",
        _line(
            "model",
            f"{model['num_layers']} layers x {model['hidden_size']}, {model['num_attention_heads']} heads, "
            f"vocabulary {_padded(report):,} ({model['vocab_size']:,} padded)   {_parameters_text(report)}",
        ),
        *_memory_lines(report),
        *_plan_lines(report),
        _line("micro-batch", _micro_batch_text(report)),
        _line("compute", _compute_text(report)),
        "",
        *_configuration_lines(report["configuration"]),
        "",
        "nothing was trained.",
    ]
    return "\n".join(lines)


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"


def _parameters_text(report: dict[str, Any]) -> str:
    whole, rank = report["parameters"] / 1e6, report["parameters_per_rank"] / 1e6
    return f"{whole:,.1f} M parameters" + (f", {rank:,.1f} M on a rank" if rank != whole else "")


def _padded(report: dict[str, Any]) -> int:
    return RunConfig.model_validate(report["configuration"]).model.padded_vocab_size


def _memory_lines(report: dict[str, Any]) -> list[str]:
    memory = report["memory_gib_per_rank"]
    short, long = report["shortest_length"], report["longest_length"]
    state = "  ".join(f"{name} {memory[name]:.2f}" for name in ("weights", "gradients", "optimizer", "buffers"))
    activations = f"activations {memory['activations_longest']:.2f} (length {long:,})"
    if short < long:
        activations += f", {memory['activations_shortest']:.2f} (length {short:,})"
    stage = f" on stage {memory['pipeline_stage']}" if report["layout"]["pipeline"] > 1 else ""
    peak = f"peak {memory['total']:.2f} GiB{stage}"
    lines = [_line("memory/rank", state), _line("", f"{activations}   {peak}")]
    if memory["host_copy"]:
        lines.append(_line("", f"in the host's memory {memory['host_copy']:.2f} (checkpoint.asynchronous)"))
    return lines


def _plan_lines(report: dict[str, Any]) -> list[str]:
    curriculum, warmup = report["schedule"]["curriculum"], report["schedule"]["batch_warmup"]
    from_step, lengths = report["full_length_from_step"], report["distinct_lengths"]
    schedule = f"{report['longest_length']:,} throughout"
    if curriculum is not None:
        schedule = f"{_schedule_text(curriculum, report, 1)} ({lengths} length{'s' if lengths > 1 else ''})"
        schedule += f"   full length from step {from_step:,}" if from_step else "   full length never reached"
    lines = [_line("length plan", schedule)]
    if warmup is not None:
        lines.append(_line("batch plan", f"rows {_schedule_text(warmup, report, 2)}"))
    totals = f"steps {report['steps']:,}   tokens trained {count_text(report['tokens_trained'])}"
    if curriculum is not None:
        totals += f"   cut off {count_text(report['tokens_discarded'])}"
        repeated = report["tokens_repeated"]
        totals += f"   trained twice {count_text(repeated)}" if repeated else ""
        totals += f" (mode {curriculum['mode']})"
    lines.append(_line("", totals))
    if curriculum is not None and curriculum["schedule_type"] == "loss_adaptive":
        lines.append(_line("", "lengths are decided while training: steps and tokens as if none ever were"))
    return lines + [line for text in report["warnings"] for line in _paragraph("warning", text)]


def _schedule_text(schedule: dict[str, Any], report: dict[str, Any], column: int) -> str:
    """How lengths (column 1 of the plan's runs) or rows (column 2) go."""
    kind, low, high = (schedule[name] for name in ("schedule_type", "min_difficulty", "max_difficulty"))
    if kind == "fixed_discrete":
        runs = report["plan"]["runs"]
        changes = [
            run for last, run in zip([None, *runs], runs, strict=False) if not last or last[column] != run[column]
        ]
        shown = [f"{run[column]:,} from step {run[0] + 1:,}" for run in changes[:4]]
        return ", ".join(shown + ["..."] * (len(changes) > 4))
    if kind == "custom":
        return f"by {schedule['function']}, in [{low:,}, {high:,}]"
    if kind == "loss_adaptive":
        return (
            f"{low:,} -> {high:,} by {schedule['difficulty_step']} after {schedule['patience']} steps without progress"
        )
    extra = {"fixed_root": f" (root {schedule['root_degree']})", "mixed": " (scattered)"}.get(kind, "")
    steps = schedule["total_curriculum_step"]
    return f"{low:,} -> {high:,} by {schedule['difficulty_step']}{extra} over {steps:,} steps"


def _micro_batch_text(report: dict[str, Any]) -> str:
    short, long = report["layout"]["micro_batches"]
    shapes = f"{long['rows']} x {long['seq_len']:,} tokens"
    counts = f"{long['count']:,}"
    if short != long:
        shapes = f"{short['rows']} x {short['seq_len']:,} ... {shapes}"
        counts = f"{short['count']:,} ... {counts}" if short["count"] != long["count"] else counts
    return f"{shapes}, {counts} per step and replica"


def _compute_text(report: dict[str, Any]) -> str:
    hours, ranks = report["hours"], report["layout"]["world_size"]
    peak = f"{ranks:,} x {hours['peak_tflops']:g} TFLOP/s (logging.peak_tflops)"
    duration = f"{hours['hours']:,.1f} h" if hours["hours"] >= 1 else f"{60 * hours['hours']:.1f} min"
    return f"{report['flops']:.3g} FLOPs   at {100 * hours['at_mfu']:.0f} % of {peak}: {duration}"


def _configuration_lines(configuration: dict[str, Any]) -> list[str]:
    """The resolved configuration, one paragraph a section."""
    sections = {name: value for name, value in configuration.items() if isinstance(value, dict)}
    run = {name: value for name, value in configuration.items() if name not in sections}
    lines = []
    for label, section in {"run": run, **sections}.items():
        pairs = [f"{name} {json.dumps(value)}" for name, value in section.items() if value is not None]
        lines += _paragraph(label, ", ".join(pairs) or "none")
    return lines


def _paragraph(label: str, text: str) -> list[str]:
    parts = textwrap.wrap(text, _WIDTH - _LABEL, break_long_words=False)
    return [_line(label if first == 0 else "", part) for first, part in enumerate(parts)]
