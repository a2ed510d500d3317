"""The machines of DeepSpeed's launcher: `NAME slots=N` a line, # begins a comment.

DeepSpeed puts the names into command lines of ssh and pdsh as they stand, and ignores what follows the slots. A name
such as `-oProxyCommand=...` is an option there that runs a program. So a hostfile from elsewhere is read strictly
first: `pretrain_gpt.py --dry-run --hostfile FILE`.
"""

from __future__ import annotations

import re
from pathlib import Path

from megatron_slw.config.errors import ConfigError, show

LARGEST_FILE = 1 << 20
LARGEST_SLOTS = 1024
_LABEL = "[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LINE = re.compile(r"(\S+)[ \t]+slots=([0-9]{1,6})")


def read_hostfile(path: str) -> dict[str, int]:
    """The slots of each machine.

    Raises:
        ConfigError: the file is none, or has a line that is not a machine's name and its slots.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"--hostfile {path} cannot be read: {error.strerror}.") from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"--hostfile {path} has more than {LARGEST_FILE >> 20} MB: it is no hostfile.")
    machines: dict[str, int] = {}
    for number, raw in enumerate(content.split(b"\n"), 1):
        line = raw.decode("utf-8", "replace").strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        where = f"--hostfile {path}, line {number}"
        match = _LINE.fullmatch(line)
        if match is None or not _NAME.fullmatch(match[1]) or len(match[1]) > 253:
            raise ConfigError(
                f"{where} is {show(line)}. Write a machine's name (letters, digits, dots and hyphens) and its devices, "
                "like worker-1 slots=8."
            )
        if match[1] in machines:
            raise ConfigError(f"{where} names {match[1]} again. Give each machine one line.")
        if not 1 <= int(match[2]) <= LARGEST_SLOTS:
            raise ConfigError(f"{where} has {match[2]} slots. Give the machine's devices, 1 to {LARGEST_SLOTS}.")
        machines[match[1]] = int(match[2])
    if not machines:
        raise ConfigError(f"--hostfile {path} names no machine. Write one a line, like worker-1 slots=8.")
    return machines
