"""What a wrong setting is answered with: one line with the rule, the values found and the knob to turn."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

_SHOWN = 60  # characters of a wrong value that an error message quotes

_Model = TypeVar("_Model", bound=BaseModel)


class ConfigError(ValueError):
    """The user's configuration, or something it names, is wrong; the message is one line for the user."""


def show(value: Any) -> str:
    """`value` as JSON on one line, cut to a readable length."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def reason(error: object, limit: int = 200) -> str:
    """What a library says of a file, on one line of printable characters: it may quote what a stranger wrote there."""
    words = " ".join(str(error).split())[:limit]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def listing(names: Iterable[object], last: str = "or") -> str:
    """`a, b or c`."""
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def join_path(path: str, name: object) -> str:
    """The dotted path of `name` inside the block at `path` (the empty path is the top level)."""
    return f"{path}.{name}" if path else str(name)


def unknown_name(path: str, name: str, valid: Iterable[str]) -> str:
    """The sentence for a setting nobody knows: with the nearest of the `valid` names, or all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    setting = join_path(path, name[:_SHOWN].encode("unicode_escape").decode("ascii"))
    if near:
        return f"{setting} is not a setting. Did you mean {near[0]}?"
    if len(names) > 20:
        return f"{setting} is not a setting."
    return f"{setting} is not a setting. The settings here are {listing(names, 'and')}."


def require_object(value: Any, path: str) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must be a JSON object, not {show(value)}.")
    return value


def require_known(block: dict[str, Any], valid: Iterable[str], path: str) -> None:
    """Refuse the first key of `block` that is not one of the `valid` names."""
    names = list(valid)
    for name in block:
        if name not in names:
            raise ConfigError(unknown_name(path, name, names))


def validate(cls: type[_Model], block: Any, path: str, inner: Mapping[str, str] | None = None) -> _Model:
    """`block`, the JSON object at the dotted `path`, as a `cls`; ConfigError names the first fault.

    `inner` has the paths of fields that the user wrote in another object than the one at `path`. Unknown
    names come first: a misspelt name is most often also a missing one, and the misspelling is the cause.
    """
    require_known(require_object(block, path), cls.model_fields, path)
    for name, field in cls.model_fields.items():
        for kind in get_args(field.annotation):
            if isinstance(block.get(name), dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
                require_known(block[name], kind.model_fields, join_path(path, name))
    try:
        return cls.model_validate(block)
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(part) for part in first["loc"]]
        where = ".".join([(inner or {}).get(names[0], path), *names])
        if first["type"] == "extra_forbidden":
            raise ConfigError(unknown_name(where.rpartition(".")[0], names[-1], _element(cls, names[0]))) from None
        raise ConfigError(_sentence(where, first["type"], first["input"], first.get("ctx", {}))) from None


def _element(cls: type[BaseModel], field: str) -> list[str]:
    """The settings of what a list of objects holds; none where the field is no such list."""
    found = get_args(cls.model_fields[field].annotation)
    is_object = bool(found) and isinstance(found[0], type) and issubclass(found[0], BaseModel)
    return list(found[0].model_fields) if is_object else []


def _sentence(where: str, kind: str, value: Any, context: dict[str, Any]) -> str:
    """One pydantic error in the user's words."""
    if kind == "missing":
        return f"{where} is missing."
    wanted = {
        "int_type": "an integer",
        "int_from_float": "an integer",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a string",
        "string_too_short": "a string that is not empty",
        "tuple_type": "a list",
        "model_type": "a JSON object",
    }.get(kind)
    if kind == "greater_than":
        wanted = f"greater than {context['gt']}"
    elif kind == "greater_than_equal":
        wanted = f"at least {context['ge']}"
    elif kind == "less_than":
        wanted = f"less than {context['lt']}"
    elif kind == "literal_error":
        wanted = str(context["expected"]).replace("'", '"')
    elif kind == "wanted":  # a validator of ours
        wanted = str(context["wanted"])
    elif kind in ("too_long", "too_short"):
        length = context.get("max_length") or context.get("min_length")
        wanted = f"a list of {length} values"
    return f"{where} must be {wanted or 'valid (' + kind + ')'}, not {show(value)}."
