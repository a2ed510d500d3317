"""The command line of tools/grow_checkpoint.py: stages of growth, and what is common to them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.argument_types import natural, positive, share
from megatron_slw.growth.derive import Options
from megatron_slw.growth.grow import Growth, plan_growth
from megatron_slw.growth.sizes import Sizes, grown_sizes
from megatron_slw.growth.stage import Stage

NOISE_DB = 10.0
NEXT_STAGE = "--then"


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    common: argparse.Namespace
    stages: tuple[argparse.Namespace, ...]
    overrides: tuple[str, ...]


def parse(argv: Sequence[str], description: str) -> Command:
    """The arguments: of the first stage and the whole growth, then of each stage after a --then.

    What no flag is a setting of the grown run, `--optimizer.params.lr=1e-3`.
    """
    parts: list[list[str]] = [[]]
    for argument in argv:
        if argument == NEXT_STAGE:
            parts.append([])
        else:
            parts[-1].append(argument)
    common, rest = _common_parser(description).parse_known_args(parts[0])
    stages, overrides = [], []
    for part in (rest, *parts[1:]):
        stage, left = _stage_parser().parse_known_args(part)
        stages.append(stage)
        overrides += left
    return Command(common, tuple(stages), tuple(overrides))


def plan(command: Command) -> Growth:
    """The growth that the command asks for.

    Raises:
        ConfigError: it cannot be had, with the reason.
    """
    common = command.common
    model = Checkpoint(common.load).config.model
    stages = []
    for flags in command.stages:
        sizes = Sizes(
            flags.depth, flags.layers, flags.width, flags.hidden_size, flags.heads, flags.ffn, flags.vocab_size,
            flags.seq_length,
        )  # fmt: skip
        model = grown_sizes(model, sizes)
        noise = flags.noise
        if noise is None:
            noise = math.inf if common.dynamics == "exact" else NOISE_DB
        snr_db = noise if math.isfinite(noise) else None
        stages.append(Stage(model, flags.depth_operator, flags.placement, flags.operator, snr_db))
    options = Options(common.dynamics, common.position, common.rewarmup_steps, common.seed)
    data = common.data if common.verify else ""
    return plan_growth(common.load, stages, common.save, options, command.overrides, data)


def _stage_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_stage(parser)
    return parser


def _common_parser(description: str) -> argparse.ArgumentParser:
    """Takes its own flags and leaves the stage's; --help shows both."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"{NEXT_STAGE} begins the flags of another stage of growth, which follows in the same command.\n"
        "Any setting of the grown run can be given too: --optimizer.params.lr=1e-3 --training.train_tokens=6e9",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help", "-h", action=_Help, help="show this and exit")
    parser.add_argument("--load", required=True, type=Path, metavar="DIR", help="the checkpoint to grow")
    parser.add_argument("--save", required=True, type=Path, metavar="DIR", help="where to: .../step_NNNNNN")
    parser.add_argument(
        "--dynamics", choices=("retarget", "exact"), default="retarget",
        help="retarget (default): the larger model's learning rate and schedule, after a warmup. exact: each step "
        "repeats the small model's, by factors on the rates that the checkpoint carries (whole width factors; "
        "nearly where --noise is given)",
    )  # fmt: skip
    parser.add_argument(
        "--position", type=share, metavar="SHARE",
        help="retarget: where in the schedule to go on, as a share of where the small model stands (default: that of "
        "arXiv 2203.06211 for the growth, 0.708 for depth 2, 0.563 for width 2, 0.407 for both; 1 stays)",
    )  # fmt: skip
    parser.add_argument("--rewarmup-steps", type=natural, metavar="N", help="retarget: warmup after it (default 200)")
    parser.add_argument("--seed", type=natural, default=0, help="of noise and new weights (default 0)")
    parser.add_argument("--data", metavar="PREFIX", help="dataset to verify on (default: the run's own)")
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True,
        help="run both models on real tokens; a difference beyond rounding is an error and leaves nothing behind",
    )  # fmt: skip
    parser.add_argument("--workers", type=positive, default=4, help="files at a time (default 4)")
    return parser


class _Help(argparse.Action):
    """Shows the flags of a stage too."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        _add_stage(parser)
        parser.print_help()
        parser.exit()


def _add_stage(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("a stage's sizes: factors, or the numbers themselves")
    sizes.add_argument("--depth", type=_factor, metavar="FACTOR", help="layers")
    sizes.add_argument("--layers", type=positive, metavar="N")
    sizes.add_argument("--width", type=_factor, metavar="FACTOR", help="hidden size; heads and feed-forward follow")
    sizes.add_argument("--hidden-size", type=positive, metavar="N", help="any size, such as 768 -> 1024")
    sizes.add_argument("--heads", type=positive, metavar="N", help="fewer than would follow makes heads larger")
    sizes.add_argument("--ffn", type=positive, metavar="N", help="feed-forward layer")
    sizes.add_argument(
        "--vocab-size", type=positive, metavar="N", help="the old tokens' logits stay; the loss does not"
    )
    sizes.add_argument("--seq-length", type=positive, metavar="N", help="position table")
    how = parser.add_argument_group("a stage's operators")
    how.add_argument(
        "--operator", choices=("staged", "clone", "net2net"), default="staged",
        help="width, lossless all: staged (default) copies side by side, clone (HyperCloning) copies that share, "
        "net2net copies of random heads and units",
    )  # fmt: skip
    how.add_argument(
        "--depth-operator", choices=("staged", "stack", "interpolate"), default="staged",
        help="staged (default): new layers begin as identities, lossless. stack (G_stack) and interpolate repeat "
        "layers and are NOT loss-preserving: the loss jumps up and recovers in training",
    )  # fmt: skip
    how.add_argument(
        "--placement", choices=("alternate", "append", "prepend"), default="alternate", help="of staged's new layers"
    )
    how.add_argument(
        "--noise", type=_noise, metavar="DB",
        help="power of the copies' weights over that of the noise that tells them apart, without which equal copies "
        "stay equal where there is no dropout; lossless. off for none (default 10; off with --dynamics exact)",
    )  # fmt: skip


def _factor(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is not a factor from 1 to 1024: a model cannot shrink")
    return value


def _noise(text: str) -> float:
    return math.inf if text == "off" else _number(text, "decibels from -20 to 120, or off", -20.0, 120.0)


def _number(text: str, wanted: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value
