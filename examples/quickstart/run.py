"""From nothing to a trained GPT on two CPU cores: text, tokenizer, dataset, pretraining, growth, evaluation, report.

    python examples/quickstart/run.py [--corpus my.jsonl]

A step is left alone if it is done and nothing it depends on has changed, so the same command goes on after an
interruption.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a checkout need not be installed

from growing import GrowingFailed
from pipeline import GROW, GROW_AT, CommandFailed, Quickstart, Settings
from training import TrainingFailed

from megatron_slw.config.errors import ConfigError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return 0, 1 (a step failed), 2 (wrong input) or 130 (interrupted)."""
    args = parser().parse_args(argv)
    name = "quickstart" if args.corpus is None else f"quickstart-{args.corpus.name.split('.')[0]}"
    settings = Settings(
        corpus=args.corpus,
        data=args.data or Path("data") / name,
        run=args.out or Path("runs") / name,
        config=args.ds_config,
        overrides=tuple(args.override),
        vocab_size=args.vocab_size,
        grow_at=args.grow_at,
        grow=tuple(shlex.split(args.grow)),
    )
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with alone(settings.data):
            Quickstart(settings).run()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (CommandFailed, TrainingFailed, GrowingFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second quickstart out of `folder` meanwhile; the system ends the lock with the process.

    Raises:
        ConfigError: another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "quickstart.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another quickstart is at work in {folder}: wait for it, or use --data and --out."
            ) from None
        yield


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = result.add_argument
    add("--corpus", type=Path, metavar="FILE", help='your own text: .jsonl, {"text": ...} a line, or .txt')
    add("--out", type=Path, metavar="DIR", help="run directory (default: runs/quickstart)")
    add("--data", type=Path, metavar="DIR", help="where the datasets go (default: data/quickstart)")
    add(
        "--ds-config",
        type=Path,
        default=Path(__file__).with_name("ds_slw.json"),
        metavar="FILE",
        help="what is trained (default: ds_slw.json beside this file)",
    )
    add("--vocab-size", type=int, default=8192, help="pieces of the tokenizer, of a small text fewer (default: 8192)")
    add("--override", action="append", default=[], metavar="--SECTION.KEY=VALUE", help="for pretrain_gpt.py")
    add("--grow-at", type=float, default=GROW_AT, metavar="SHARE", help=f"of all steps (default: {GROW_AT})")
    add(
        "--grow", default=shlex.join(GROW), metavar="FLAGS", help=f"of grow_checkpoint.py (default: {shlex.join(GROW)})"
    )
    return result


if __name__ == "__main__":
    raise SystemExit(main())
