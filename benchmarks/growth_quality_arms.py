"""What benchmarks/growth_quality.py trains: chains of stages, each stage a model that the one before grows into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Moments = Literal["exact", "published", "fresh"]
SEEDS = (1, 2, 3)
VOCABULARY = 1024
LENGTH, SHORTEST, ROWS = 128, 32, 8
HEAD_SIZE = 16
LAYERS, HIDDEN = 4, 64
BASELINE_TOKENS = 400 * ROWS * LENGTH
WARMUP_STEPS = 20
INIT_STD = 0.06
"""At 0.02, made for wide models, these stay at the unigram loss for a hundred steps."""
EVALUATION_INTERVAL = 20
MOST_TOKENS = 3_000_000
"""Of a plan: no run comes that far."""
SLW_TOKENS = 100_000


ROUTES: Mapping[str, Sequence[tuple[int, int]]] = {
    "scratch": ((LAYERS, HIDDEN),),
    "2xD": ((LAYERS // 2, HIDDEN), (LAYERS, HIDDEN)),
    "2xW": ((LAYERS, HIDDEN // 2), (LAYERS, HIDDEN)),
    "2xDxW": ((LAYERS // 2, HIDDEN // 2), (LAYERS, HIDDEN)),
    "2x2xD": ((LAYERS // 4, HIDDEN), (LAYERS // 2, HIDDEN), (LAYERS, HIDDEN)),
    "half depth": ((LAYERS // 2, HIDDEN),),
    "half width": ((LAYERS, HIDDEN // 2),),
    "half both": ((LAYERS // 2, HIDDEN // 2),),
}
"""Layers and hidden size of each stage. The last three never grow: what a small model does alone, by which growing must
be judged."""
RATES = {64: 4e-3, 32: 4e-3}
"""Learning rate by hidden size."""
REWARMUP = 10
NOISE = -10.0
"""Of a growth in width, in decibels: the noise has ten times the power of the weights."""
MOST_COMPUTE = 1.1
"""Of the baseline's, after which a chain that has not come to its loss is given up."""
ENDS: Mapping[str, Sequence[int]] = {
    "2xD": (300_000,), "2xW": (300_000,), "2xDxW": (300_000,), "2x2xD": (200_000, 320_000),
}
"""Trained tokens at which each stage but the last of a route ends."""


@dataclass(frozen=True)
class Stage:
    """One model of a chain."""

    layers: int
    hidden: int
    rate: float
    end: int | None = None
    """Trained tokens, on the chain's clock, at which it grows; None for the last."""
    moments: Moments = "exact"
    """How the optimizer's state comes over the growth that the stage begins with; of no meaning for the first."""
    rewarmup: int = 0
    noise: float = 10.0
    """Of the growth that it begins with, in decibels."""


    @property
    def size(self) -> str:
        """Layers and hidden size."""
        return f"{self.layers}x{self.hidden}"


@dataclass(frozen=True)
class Chain:
    """A way to the target, for one seed."""

    seed: int
    slw: bool
    stages: tuple[Stage, ...]
    slw_tokens: int = SLW_TOKENS
    shortest: int = SHORTEST

    @property
    def name(self) -> str:
        """Of the last stage's folder; chains that begin alike share the folders of what is alike."""
        plain = asdict(self)
        if not self.slw:
            plain["slw_tokens"] = 0
            del plain["shortest"]
        digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:8]
        sizes = "_".join(stage.size for stage in self.stages)
        return f"{self.seed}_{'slw' if self.slw else 'full'}_{sizes}_{digest}"

    @property
    def before(self) -> Chain:
        """Without the last stage."""
        return replace(self, stages=self.stages[:-1])


GROWN = ("2xW", "2xD", "2xDxW", "2x2xD")


@dataclass(frozen=True)
class Arm:
    """One way to the target; it is gone once a seed."""

    route: str
    slw: bool
    moments: Moments = "exact"

    @property
    def name(self) -> str:
        """`2xW slw fresh`"""
        words = [self.route, "slw" if self.slw else "", self.moments if self.route in GROWN else ""]
        return " ".join(word for word in words if word)

    def chain(self, seed: int) -> Chain:
        """What is trained."""
        ends = (*ENDS.get(self.route, ()), None if self != BASELINE else BASELINE_TOKENS)
        stages: list[Stage] = []
        for (layers, hidden), end in zip(ROUTES[self.route], ends, strict=True):
            stage = Stage(layers, hidden, RATES[hidden], end)
            if stages:
                stage = replace(stage, moments=self.moments, rewarmup=REWARMUP)
                if stages[-1].hidden != hidden:
                    stage = replace(stage, noise=NOISE)
            stages.append(stage)
        return Chain(seed, self.slw, tuple(stages))


BASELINE = Arm("scratch", False)
ALONE = ("half depth", "half width", "half both")
OTHERS: Sequence[Moments] = ("published", "fresh")
WAVES: Sequence[Sequence[Arm]] = (
    (BASELINE, Arm("scratch", True), *(Arm(route, slw) for slw in (False, True) for route in GROWN)),
    tuple(Arm(route, False) for route in ALONE),
    tuple(Arm(route, False, moments) for moments in OTHERS for route in GROWN),
    tuple(Arm(route, True, moments) for moments in OTHERS for route in GROWN),
)
"""The arms that matter most first; a wave is gone for all seeds before the next."""


def settings() -> dict[str, Any]:
    """What the results file says was trained."""
    config = configuration(BASELINE.chain(SEEDS[0]), Path(), Path())
    ours = config.pop("megatron_slw")
    return {
        "seeds": SEEDS, "vocabulary": VOCABULARY, "baseline_tokens": BASELINE_TOKENS, "rates": RATES,
        "slw": {"from": SHORTEST, "to": LENGTH, "tokens": SLW_TOKENS}, "rewarmup_steps": REWARMUP, "noise_db": NOISE,
        "grown_at_tokens": ENDS,
        "configuration": config | {section: ours[section] for section in ("model", "training", "evaluation")},
    }  # fmt: skip


def growth_flags(chain: Chain) -> list[str]:
    """The flags of grow_checkpoint.py for the growth that the last stage begins with, but --load and --save."""
    small, large = chain.stages[-2:]
    flags = [f"--optimizer.params.lr={large.rate}", f"--rewarmup-steps={large.rewarmup}", f"--seed={chain.seed}"]
    if large.layers != small.layers:
        flags.append(f"--layers={large.layers}")
        if large.moments == "published":  # copies, which its code makes where identities are asked for
            flags.append("--depth-operator=interpolate")
    if large.hidden != small.hidden:
        flags += [f"--hidden-size={large.hidden}", f"--noise={large.noise}"]
    return flags


def configuration(chain: Chain, data: Path, run: Path) -> dict[str, Any]:
    """The JSON that pretrain_gpt.py takes for the first stage.

    Args:
        chain: its first stage alone counts.
        data: the folder with the datasets train and valid.
        run: where the run goes.
    """
    stage = chain.stages[0]
    warmup = {
        "schedule_type": "fixed_linear", "min_difficulty": chain.shortest, "max_difficulty": LENGTH,
        "schedule_config": {"total_curriculum_tokens": chain.slw_tokens, "difficulty_step": 8},
    }  # fmt: skip
    curriculum = {"curriculum_learning": {"enabled": True, "curriculum_metrics": {"seqlen_truncate": warmup}}}
    return {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS,
        "gradient_clipping": 1.0,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": stage.rate, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.01},
        },
        **({"data_efficiency": {"data_sampling": curriculum}} if chain.slw else {}),
        "megatron_slw": {
            "model": {
                "num_layers": stage.layers, "hidden_size": stage.hidden,
                "num_attention_heads": stage.hidden // HEAD_SIZE, "seq_length": LENGTH,
                "hidden_dropout": 0.0, "attention_dropout": 0.0, "init_method_std": INIT_STD,
            },
            "data": {"path": str(data / "train_text_document"), "valid_path": str(data / "valid_text_document")},
            "training": {
                "train_tokens": MOST_TOKENS, "seed": chain.seed, "lr_warmup_steps": WARMUP_STEPS,
                "lr_decay_style": "constant",
            },
            "evaluation": {"interval": EVALUATION_INTERVAL, "samples": 48},
            "checkpoint": {"interval": 0, "keep_last": 1},
            "logging": {"directory": str(run), "interval": 1000, "tensorboard": False},
        },
    }  # fmt: skip
