"""Byte-level BPE from vocab.json with merges.txt, or from a tokenizer.json; tiktoken merges where it may.

tiktoken encodes such a vocabulary about six times as fast as `tokenizers`, and does it by other rules: it joins
any two neighbours that make up a token, the lowest id first, where `tokenizers` joins listed pairs in the order
of the list. The two agree on every text if

- the text is split and its bytes spelled as GPT-2 does it, and nothing else is done to it,
- each pair makes a new token, and the ids grow in the order of the list,
- each token, encoded alone, is that one token.

For until a merge crosses the ends of a stretch of text, the stretch is merged as if it stood alone. Two
neighbours x and y that make up a token t are therefore reached only if t alone reaches them too; and t alone
ends as t, so that by then the pair x, y was a listed one. `gpt2_ranks` checks all three when it loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.data.sidecar import TokenizerInfo, file_sha256
from megatron_slw.data.tiktoken_ranks import (
    GPT2_PATTERN,
    O200K_PATTERN,
    RANK_ENDING,
    encode_flat,
    encoding_of,
    load_gpt2_ranks,
    parts_of,
)
from megatron_slw.data.tokenizer_interface import (
    BACKENDS,
    EOD_NAMES,
    LARGEST_ID,
    FlatIds,
    LoadedTokenizer,
    TokenizerSpec,
    joined,
    needed,
    parsed,
    require_file,
)

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PUBLISHED = (_LLAMA3, _LLAMA3.replace("{1,3}", ""), O200K_PATTERN)
"""How a tokenizer.json spells the expressions of Llama 3 (cl100k), Qwen 2 and GPT-4o."""
_WORD_ENDS = ("continuing_subword_prefix", "end_of_word_suffix")
_NOT_PLAIN = ("dropout", "unk_token", "byte_fallback", "ignore_merges", *_WORD_ENDS)


def load_hugging_face(spec: TokenizerSpec) -> LoadedTokenizer:
    """A tokenizer.json, or the folder that holds one."""
    path = Path(needed(spec, "tokenizer_model"))
    if path.is_dir():
        path = path / "tokenizer.json"
    require_file(path, "--tokenizer-model")
    return _finished(spec, path.name, file_sha256(path), hugging_face_library(path), path)


def load_gpt2(spec: TokenizerSpec) -> LoadedTokenizer:
    """GPT-2's byte-level BPE: encoder.json and vocab.bpe, also known as vocab.json and merges.txt; or ranks."""
    ranks = spec.tokenizer_model or spec.vocab_file
    if ranks is not None and ranks.endswith(RANK_ENDING):
        return load_gpt2_ranks(spec, Path(ranks))
    vocab, merges = Path(needed(spec, "vocab_file")), Path(needed(spec, "merge_file"))
    digest = hashlib.sha256((file_sha256(_file(vocab)) + file_sha256(_file(merges, "--merge-file"))).encode())
    library = gpt2_library(vocab, merges)
    return _finished(spec, f"{vocab.name} {merges.name}", digest.hexdigest(), library, vocab)


def hugging_face_library(path: Path) -> Any:
    """The `tokenizers` object of a tokenizer.json, without the settings of a model's input."""
    from tokenizers import Tokenizer as Library

    library = parsed(path, lambda: Library.from_file(str(path)))
    # Documents must not be cut, padded or parsed for special tokens.
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def gpt2_library(vocab: Path, merges: Path) -> Any:
    """The `tokenizers` object of vocab.json and merges.txt, both checked."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    ids = read_vocab(vocab)
    library = parsed(merges, lambda: Library(models.BPE(ids, read_merges(merges, ids))))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def read_vocab(path: Path) -> dict[str, int]:
    """Read vocab.json, an object of token to id.

    Raises:
        ConfigError: naming the file and the token that is there twice, or whose id is wrong or taken.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise ConfigError(f"{path} has a token twice.")
        return result

    data = parsed(
        path, lambda: json.loads(_file(path).read_text(encoding="utf-8"), object_pairs_hook=unique)
    )
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path} is not a file of this tokenizer type (it must map tokens to ids).")
    seen: set[int] = set()
    for token, number in data.items():
        if type(number) is not int or not 0 <= number < LARGEST_ID:
            raise ConfigError(
                f"{path} is not a file of this tokenizer type (the id of {show(token)} is {show(number)})."
            )
        if number in seen:
            raise ConfigError(f"{path}: the id {number} of {show(token)} is another token's too.")
        seen.add(number)
    return data


def read_merges(path: Path, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Read merges.txt, a pair of tokens a line, first the ones to join first.

    Raises:
        ConfigError: naming the file and the line that is no pair, or whose tokens are not in the vocabulary.
    """
    pairs: list[tuple[str, str]] = []
    text = parsed(path, lambda: _file(path, "--merge-file").read_text(encoding="utf-8"))
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#version"):
            continue
        left, blank, right = line.partition(" ")
        if not (left and blank and right) or " " in right:
            raise ConfigError(f"{path}, line {number} must be two tokens, but is {show(line)}.")
        if left not in ids or right not in ids or left + right not in ids:
            missing = next(token for token in (left, right, left + right) if token not in ids)
            raise ConfigError(f"{path}, line {number}: {show(missing)} is not in the vocabulary.")
        pairs.append((left, right))
    return pairs


def gpt2_ranks(library: Any) -> dict[bytes, int] | None:
    """The ranks with which tiktoken gives the ids of a `tokenizers` object for every text; None if it may not."""
    data = json.loads(library.to_str())
    model, split = data["model"], data.get("pre_tokenizer") or {}
    if model["type"] != "BPE" or data.get("normalizer") or any(model.get(name) for name in _NOT_PLAIN):
        return None
    if not _has(split, _BYTE_LEVEL):
        return None
    if not all(token["special"] for token in data.get("added_tokens", ())):
        return None
    ids, merges = model["vocab"], [_pair(pair) for pair in model["merges"]]
    made = [left + right for left, right in merges]
    order = [ids[token] for token in made]
    if any(later <= earlier for earlier, later in zip(order, order[1:], strict=False)):
        return None
    spelled = bytes_of_characters()
    ranks = {bytes([byte]): ids.get(character, -1) for character, byte in spelled.items()}
    if min(ranks.values()) < 0 or set("".join(made)) - set(spelled):
        return None
    latin1 = str.maketrans({character: chr(byte) for character, byte in spelled.items()})
    ranks |= {token.translate(latin1).encode("latin-1"): rank for token, rank in zip(made, order, strict=True)}
    alone = library.model.tokenize
    if any([piece.id for piece in alone(token)] != [ids[token]] for token in made):
        return None
    return ranks


def may_be_cut(library: Any) -> bool:
    """Whether a text has the same ids in the parts of `parts_of`, so that a long one need not be encoded at once.

    It does if the text is split there anyway: by GPT-2's expression or another published one (see `tiktoken_ranks`),
    with nothing done to the text before but composing characters, which no blank or line end takes part in.
    """
    data = json.loads(library.to_str())
    if data.get("normalizer") not in (None, {"type": "NFC"}):
        return False
    if not all(token["special"] for token in data.get("added_tokens", ())):
        return False
    split = data.get("pre_tokenizer") or {}
    if split.get("type") != "Sequence":
        return _has(split, _BYTE_LEVEL)
    first, *rest = split["pretokenizers"]
    published = _has(first, _SPLIT) and first["pattern"].get("Regex") in PUBLISHED
    return published and len(rest) == 1 and _has(rest[0], _BYTE_LEVEL | {"use_regex": False})


def _has(part: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(part.get(name) == value for name, value in wanted.items())


def _whole(text: str) -> tuple[str]:
    return (text,)


def _finished(spec: TokenizerSpec, name: str, sha256: str, library: Any, path: Path) -> LoadedTokenizer:
    vocab = library.get_vocab(with_added_tokens=True)
    if max(vocab.values(), default=0) >= LARGEST_ID:
        raise ConfigError(f"{path}: its largest id is {max(vocab.values())}, not below {LARGEST_ID}.")
    eod = next((vocab[token] for token in EOD_NAMES if token in vocab), None)
    info = TokenizerInfo(spec.type, name, sha256, max(vocab.values(), default=-1) + 1, eod)

    def decode(ids: list[int]) -> str:
        return library.decode(ids, skip_special_tokens=False)

    ranks = gpt2_ranks(library) if spec.backend == BACKENDS[0] else None
    if ranks is not None:
        encoding = encoding_of(ranks, GPT2_PATTERN, {}, path)
        return LoadedTokenizer(info, lambda texts: encode_flat(encoding, texts), decode, library)
    # One at a time: a list would be shared between as many threads as there are cores, in every worker.
    encode = library.encode_batch_fast
    parts = partial(parts_of, anywhere=False) if may_be_cut(library) else _whole

    def ids(part: str) -> list[int]:
        return encode([part], add_special_tokens=False)[0].ids

    def flat(texts: Sequence[str]) -> FlatIds:
        return joined((map(ids, parts(text)) for text in texts), info.vocab_size)

    return LoadedTokenizer(info, flat, decode, library)


def _file(path: Path, flag: str = "--vocab-file") -> Path:
    require_file(path, flag)
    return path


def _pair(pair: str | list[str]) -> tuple[str, str]:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right


def bytes_of_characters() -> dict[str, int]:
    """GPT-2's spelling of bytes: the visible Latin-1 characters are themselves, the others follow from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}
