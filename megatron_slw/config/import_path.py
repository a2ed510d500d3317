"""Functions of the user's own, by their import path `module:function`.

Importing a module runs it. Such a path is taken from the configuration that the user starts a run with, never from a
checkpoint or a dataset: reading a configuration imports nothing, only using the setting does.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from megatron_slw.config.errors import ConfigError


@functools.cache
def load_function(path: str, setting: str) -> Callable[..., object]:
    """The function at an import path `module:function`; ConfigError naming `setting` if there is none."""
    module_name, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f'{setting} {path} cannot be imported: {error}. Give it as "module:function", with the module on '
            "PYTHONPATH."
        ) from error
    if not callable(function):
        raise ConfigError(f"{setting} {path} is no function.")
    return function


def import_paths(tree: Any, path: str = "") -> dict[str, str]:
    """The settings of a configuration's JSON `tree` whose values are import paths, by their dotted names."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            found |= import_paths(value, here)
        elif isinstance(value, str) and here.endswith((".schedule_config.function", ".logging.callback")):
            found[here] = value
    return found
