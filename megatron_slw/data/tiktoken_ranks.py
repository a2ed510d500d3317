"""tiktoken: encodings by name, rank files, and texts of any length.

tiktoken splits a text by a regular expression before it merges bytes. That expression keeps a stack as long as
a run of characters: two million blanks before a word end the process with a panic. Long texts are therefore
encoded in parts. They are cut where every published expression ends a part of its own accord, so that the ids
stay the same: before a blank that follows no white space, or after a single line end between two characters
that are none. Only where 262,144 characters have no such place is the text cut between any two.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_slw.config.errors import ConfigError, listing, show
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.data.tokenizer_interface import (
    EOD_NAMES,
    LARGEST_ID,
    FlatIds,
    LoadedTokenizer,
    TokenizerSpec,
    joined,
    needed,
    require_file,
)

if TYPE_CHECKING:
    import tiktoken

RANK_ENDING = ".tiktoken"
PART = 1 << 18
"""Characters encoded at once; shorter texts are never cut."""
_TAIL = 1 << 12  # where a place to cut is looked for first
_CUT = re.compile(r"\S(?= )|\S\n(?=[^\s/])")  # `/`: o200k takes it together with a line end

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
    r"|\s+(?!\S)|\s"
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTION,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTION,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_END = EOD_NAMES[0]
RANK_FILES: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2": (GPT2_PATTERN, {_END: 50256}),
    "r50k_base": (GPT2_PATTERN, {_END: 50256}),
    "p50k_base": (GPT2_PATTERN, {_END: 50256}),
    "cl100k_base": (_CL100K_PATTERN, {
        _END: 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    }),
    "o200k_base": (O200K_PATTERN, {_END: 199999, "<|endofprompt|>": 200018}),
}  # fmt: skip
"""A rank file holds neither expression nor special tokens: its name says which are OpenAI's (openai_public.py)."""


def load_tiktoken(spec: TokenizerSpec) -> LoadedTokenizer:
    """One of tiktoken's encodings, by its name or by a rank file called after it (cl100k_base.tiktoken)."""
    return tokenizer_of(spec.type, named_encoding(spec))


def load_gpt2_ranks(spec: TokenizerSpec, path: Path) -> LoadedTokenizer:
    """GPT-2's way to split text with the ranks of any file."""
    return tokenizer_of(spec.type, gpt2_encoding(path))


def named_encoding(spec: TokenizerSpec) -> tiktoken.Encoding:
    """The encoding that `spec.tokenizer_model` names."""
    name = needed(spec, "tokenizer_model")
    if not name.endswith(RANK_ENDING):
        return _encoding_by_name(spec.type, name)
    path = Path(name)
    if path.name.removesuffix(RANK_ENDING) not in RANK_FILES:
        known = listing(f"{known}{RANK_ENDING}" for known in RANK_FILES)
        raise ConfigError(f"{path}: the name of a rank file says how text is split. It must be {known}.")
    pattern, special = RANK_FILES[path.name.removesuffix(RANK_ENDING)]
    return encoding_of(read_ranks(path), pattern, special, path)


def gpt2_encoding(path: Path) -> tiktoken.Encoding:
    """The ranks of a file, split as GPT-2 does it; the end-of-document token follows the last rank."""
    ranks = read_ranks(path)
    return encoding_of(ranks, GPT2_PATTERN, {_END: max(ranks.values()) + 1}, path)


def tokenizer_of(kind: str, encoding: tiktoken.Encoding) -> LoadedTokenizer:
    """An encoding behind the interface."""
    names = [name for name in EOD_NAMES if name in encoding.special_tokens_set]
    eod = encoding.encode_single_token(names[0]) if names else None
    info = TokenizerInfo(kind, encoding.name, _digest(encoding), encoding.n_vocab, eod)
    return LoadedTokenizer(info, lambda texts: encode_flat(encoding, texts), encoding.decode)


def encode_flat(encoding: tiktoken.Encoding, texts: Sequence[str]) -> FlatIds:
    """The ids of texts; none of them is a special token's."""
    ids = partial(encoding.encode_to_numpy, disallowed_special=())
    return joined((map(ids, parts_of(text)) for text in texts), encoding.n_vocab)


def encoding_of(
    ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int], path: Path
) -> tiktoken.Encoding:
    """tiktoken's object; a special token whose id is already a rank's is refused, naming the file `path`."""
    import tiktoken

    if taken := set(special.values()) & set(ranks.values()):
        raise ConfigError(f"{path}: rank {min(taken)} is the id of a special token: it is another encoding's file.")
    return tiktoken.Encoding(
        path.name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special)
    )


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a rank file: a line for each token, its bytes in base64, a blank, its rank.

    Raises:
        ConfigError: naming the file and the line, or the byte that has no token.
    """
    require_file(path, "--tokenizer-model")
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            token, rank = _rank_line(line, f"{path}, line {number}")
            if token in ranks or rank in seen:
                raise ConfigError(f"{path}, line {number} has a token or a rank that an earlier line has.")
            ranks[token] = rank
            seen.add(rank)
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise ConfigError(f"{path} has no token for the byte 0x{byte:02x}: it is no rank file, or cut short.")
    return ranks


def _rank_line(line: bytes, place: str) -> tuple[bytes, int]:
    parts = line.split()
    try:
        if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 9:
            raise ValueError("two words, the second a number")
        token, rank = base64.b64decode(parts[0], validate=True), int(parts[1])
    except (ValueError, binascii.Error):
        shown = show(line[:60].decode("utf-8", "replace").strip())
        raise ConfigError(f"{place} must be base64 and a rank, but is {shown}.") from None
    if not token or rank >= LARGEST_ID:
        raise ConfigError(f"{place} has an empty token or a rank of {LARGEST_ID:,} or more.")
    return token, rank


def parts_of(text: str, limit: int = PART, anywhere: bool = True) -> Iterator[str]:
    """`text` in parts of at most `limit` characters; `''.join` gives it back.

    Where there is no place to cut, it is cut after `limit` characters; unless `anywhere`, at the next place.
    """
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        end = _last_cut(text, max(start, stop - _TAIL), stop) or _last_cut(text, start, stop)
        if not end:
            found = None if anywhere else _CUT.search(text, stop - 2)
            end = stop if anywhere else found.end() if found else len(text)
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def _last_cut(text: str, start: int, stop: int) -> int:
    end = 0
    for match in _CUT.finditer(text, start, stop):
        end = match.end()
    return end


def _encoding_by_name(kind: str, name: str) -> tiktoken.Encoding:
    import tiktoken

    if name not in tiktoken.list_encoding_names():
        known = listing(tiktoken.list_encoding_names())
        raise ConfigError(f"--tokenizer-model must be {known} or a {RANK_ENDING} file for {kind}, not {name}.")
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are of the first class, a wrong hash is the second
        raise ConfigError(
            f"the ranks of {name} cannot be fetched ({type(error).__name__}). Give the file {name}{RANK_ENDING} "
            "as --tokenizer-model, or fill tiktoken's cache (TIKTOKEN_CACHE_DIR) where there is a network."
        ) from None


def _digest(encoding: tiktoken.Encoding) -> str:
    """SHA-256 of every token with its id: the same for an encoding by name and by file."""
    digest = hashlib.sha256()
    for token in sorted(encoding.token_byte_values()):
        digest.update(b"%d %d " % (encoding.encode_single_token(token), len(token)) + token)
    return digest.hexdigest()
