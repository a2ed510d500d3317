"""Reading a user's JSON strictly: a name given twice, NaN and 1e999 are errors, never guesses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from megatron_slw.config.errors import ConfigError, require_object, show

MAX_BYTES = 1 << 20


def read_json(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Raises:
        ConfigError: the file is missing, unreadable or longer than max_bytes, or it is not one strict JSON
            object.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot be read: {reason}.") from None
    if len(content) > max_bytes:
        raise ConfigError(
            f"is longer than {max_bytes:,} bytes: a configuration is small, is this the right file?"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start}).") from None
    return require_object(parse_json(text), "its content")


def parse_json(text: str) -> Any:
    """The value of a strict JSON `text`; ConfigError says what is wrong with it and where."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error.msg}, line {error.lineno} column {error.colno}.") from None
    except RecursionError:
        raise ConfigError("is not a configuration: its lists or objects are nested too deeply.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block: dict[str, Any] = {}
    for name, value in pairs:
        if name in block:
            raise ConfigError(
                f"{show(name)} stands twice in one object, as {show(block[name])} and as {show(value)}."
            )
        block[name] = value
    return block


def _no_constant(name: str) -> NoReturn:
    raise ConfigError(f"{name} is not a JSON number.")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):  # 1e999 is correct JSON and infinity in Python
        raise ConfigError(f"the number {show(digits)} is too large.")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20:  # Python alone would stop at 4,300 digits; no setting needs more than 64 bits
        raise ConfigError(f"the number {show(digits)} is too large.")
    return int(digits)
