"""Prompts from the command line, a file or a person, and their texts shown as they are written."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from megatron_slw.config.errors import ConfigError
from megatron_slw.evaluation.generate import Writer
from megatron_slw.evaluation.sampling import Sampling
from megatron_slw.train.units import duration_text

RULE = "-" * 40 + "\n"
LARGEST_FILE = 1 << 28
"""Bytes of a file of prompts."""


def read_text(path: str) -> str:
    """A whole file.

    Raises:
        ConfigError: there is none, it is empty, too large, or not UTF-8.
    """
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path} has more than {LARGEST_FILE >> 20} MB, too much for prompts.")
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give a file of prompts.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start:,}. Give prompts as UTF-8 text.") from None
    if not text.strip():
        raise ConfigError(f"{path} has no text. Give a file of prompts.")
    return text


def read_prompts(path: str) -> list[str]:
    """The prompts of a file: {"prompt": text} a line in .jsonl, else a line each; empty lines are none.

    Raises:
        ConfigError: as `read_text`, or a line that is no prompt; it names the line.
    """
    prompts = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        prompts.append(_json_prompt(path, number, line) if path.endswith(".jsonl") else line.rstrip("\r"))
    return prompts


def _json_prompt(path: str, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str) or any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ConfigError(f'{path}, line {number} is no prompt. Give a JSON object with the text under "prompt".')
    return prompt


def write_prompt(
    writer: Writer, prompt: str, tokens: int, samplings: Sequence[Sampling], out: TextIO, echo: bool = True
) -> None:
    """The texts after one prompt, one after the other, shown as they are written.

    Args:
        writer: the model.
        prompt: to go on from.
        tokens: of each text, at most.
        samplings: one for each text.
        out: where to.
        echo: whether the prompt stands before each text.
    """
    if unseen := writer.unseen(prompt):
        _warn_of_unseen(writer, unseen)
    for number, sampling in enumerate(samplings):
        out.write((RULE if number else "") + (prompt if echo else ""))
        out.flush()
        for _, piece in writer.stream([prompt], tokens, sampling):
            out.write(piece)
            out.flush()
        out.write("\n")


def interactive(writer: Writer, tokens: int, samplings: Sequence[Sampling], lines: TextIO, out: TextIO) -> None:
    """A prompt a line, until there are no more. Ctrl-C ends a text; while a line is awaited, everything."""
    while True:
        out.write("> ")
        out.flush()
        line = lines.readline()
        if not line:
            out.write("\n")
            return
        try:
            write_prompt(writer, line.rstrip("\r\n"), tokens, samplings, out, echo=False)
        except KeyboardInterrupt:
            out.write("\n")


def write_file(
    writer: Writer, prompts: Sequence[str], tokens: int, sampling: Sampling, batch: int, as_json: bool, out: TextIO
) -> None:
    """The texts of many prompts in their order, `batch` of them written at once; progress goes to the standard error.

    The seed counts up by one a prompt, so that a text does not depend on `batch`, but for the rounding of the sums.
    """
    if batch < 1:
        raise ConfigError(f"--batch {batch} must be 1 or more.")
    unseen = max(map(writer.unseen, prompts))
    if unseen:
        _warn_of_unseen(writer, unseen)
    for number, (prompt, text) in enumerate(_texts(writer, prompts, tokens, sampling, batch)):
        if as_json:
            out.write(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
        else:
            out.write(f"{RULE if number else ''}{prompt}{text}\n")
        out.flush()


def _texts(
    writer: Writer, prompts: Sequence[str], tokens: int, sampling: Sampling, batch: int
) -> Iterator[tuple[str, str]]:
    began = time.monotonic()
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        seeded = replace(sampling, seed=sampling.seed + first)
        yield from zip(part, writer.write(part, tokens, seeded), strict=True)
        done = first + len(part)
        left = (time.monotonic() - began) / done * (len(prompts) - done)
        print(f"{done}/{len(prompts)} prompts, {duration_text(left)} left", file=sys.stderr, flush=True)


def _warn_of_unseen(writer: Writer, unseen: int) -> None:
    length = writer.model.seq_length
    print(
        f"warning: the prompt is longer than the model's {length} tokens; its first {unseen} are not seen.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
