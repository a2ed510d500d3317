"""What command lines share: types of arguments, which argparse reports in one sentence."""

from __future__ import annotations

import argparse


def natural(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal() or len(text) > 12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    value = natural(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return value
