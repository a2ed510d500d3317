"""Published schedules by name: `"preset": "NAME"` in a metric's block. What the block itself says goes before.

`max_difficulty` is left out: it is the full length of the model, or the global batch.
"""

from __future__ import annotations

from typing import Any

from megatron_slw.config.errors import ConfigError, listing, require_object, show

LENGTHS = "seqlen"
ROWS = "batch_size"


def _slw(low: int, steps: int) -> dict[str, Any]:
    return {
        "schedule_type": "fixed_linear",
        "min_difficulty": low,
        "schedule_config": {"total_curriculum_step": steps, "difficulty_step": 8},
    }


PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2108.06084, table 1: cases 2 and 3, 5 and 6, 8 and 9, 11 and 12, 14 and 15.
    "slw_117m_bsz512": _slw(8, 60_000),
    "slw_117m_bsz4k": _slw(8, 20_000),
    "slw_117m_bsz512_2k": _slw(8, 110_000),
    "slw_1.5b_bsz512": _slw(64, 270_000),
    "slw_1.5b_bsz4k": _slw(64, 45_000),
    # The method card's start for a model of one's own: a third of the run.
    "slw": {
        "schedule_type": "fixed_linear",
        "min_difficulty": 64,
        "schedule_config": {"duration": 0.3, "difficulty_step": 8},
    },
    # The same paper, case 16: it diverged at the switch.
    "two_stage_1.5b_bsz4k": {
        "schedule_type": "fixed_discrete",
        "min_difficulty": 128,
        "schedule_config": {"difficulty": [128, None], "max_step": [20_000]},
    },
    # arXiv 2012.15832: 50 of 205 epochs on 128 tokens, the others on the full length.
    "shortformer": {
        "schedule_type": "fixed_discrete",
        "min_difficulty": 128,
        "schedule_config": {"difficulty": [128, None], "max_fraction": [0.25]},
    },
    # One epoch in three stages; with a mode that brings the tails back it trains every token once.
    "staged_one_epoch": {
        "schedule_type": "fixed_discrete",
        "min_difficulty": 128,
        "schedule_config": {"difficulty": [128, 256, None], "max_fraction": [0.25, 0.5]},
    },
    # A control: the lengths of `slw` in a scattered order.
    "mixed": {
        "schedule_type": "mixed",
        "min_difficulty": 64,
        "schedule_config": {"duration": 0.3, "difficulty_step": 8},
    },
}
BATCH_PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2005.14165, section B: from 32 thousand tokens (16 rows of 2048) over the first 4 billion.
    "gpt3": {
        "schedule_type": "fixed_linear",
        "min_difficulty": 16,
        "schedule_config": {"total_curriculum_tokens": 4_000_000_000, "difficulty_step": 16},
    },
    # arXiv 2108.06084, case 17.
    "bsz_warmup_1.5b_bsz4k": {
        "schedule_type": "fixed_linear",
        "min_difficulty": 128,
        "schedule_config": {"total_curriculum_step": 45_000, "difficulty_step": 128},
    },
}


def expand_preset(block: dict[str, Any], path: str, presets: dict[str, dict[str, Any]], full: int) -> dict[str, Any]:
    """`block` with what its preset says where the block itself says nothing; without a preset as it is.

    Args:
        block: of one metric.
        path: its dotted path.
        presets: those of lengths or of rows.
        full: the full length or global batch; a None in a preset's list stands for it.

    Raises:
        ConfigError: there is no such preset.
    """
    if "preset" not in block:
        return block
    name = block["preset"]
    if not isinstance(name, str) or name not in presets:
        raise ConfigError(f"{path}.preset must be {listing(presets)}, not {show(name)}.")
    preset = presets[name]
    inner = {
        key: [full if entry is None else entry for entry in value] if isinstance(value, list) else value
        for key, value in preset["schedule_config"].items()
    }
    own = require_object(block.get("schedule_config") or {}, f"{path}.schedule_config")
    for group in ALTERNATIVES:
        if any(own.get(key) is not None for key in group):
            inner = {key: value for key, value in inner.items() if key not in group}
    merged = {"max_difficulty": full} | preset | {key: value for key, value in block.items() if key != "preset"}
    return merged | {"schedule_config": inner | own}


ALTERNATIVES = (
    ("total_curriculum_step", "total_curriculum_tokens", "duration"),
    ("max_step", "max_tokens", "max_fraction"),
)
"""Settings of which a schedule has one."""
