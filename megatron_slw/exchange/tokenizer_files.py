"""The tokenizer of a dataset as the files that AutoTokenizer loads, with the same ids for every text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.json_file import read_json
from megatron_slw.data.byte_pair import bytes_of_characters, gpt2_library, hugging_face_library
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer, tokenizer_spec
from megatron_slw.data.layout import dataset_paths
from megatron_slw.data.sidecar import read_sidecar
from megatron_slw.data.tiktoken_ranks import GPT2_PATTERN, RANK_ENDING, gpt2_encoding, named_encoding
from megatron_slw.data.tokenizer_interface import EOD_NAMES, TokenizerSpec, require_file

if TYPE_CHECKING:
    import tiktoken

MAIN, SETTINGS = "tokenizer.json", "tokenizer_config.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
PROBE = "The 1st of 2 naïve cafés isn't HERE:\n\tx_1 = [f(y) for y in z]  # 東京 🦊 I've 3.14"
"""Tokenizers of language models tell themselves apart on it."""
COPIED = (MAIN, SETTINGS, VOCAB, MERGES, "special_tokens_map.json", "added_tokens.json")
Files = dict[str, bytes]
"""Content by name."""


def tokenizer_files(prefix: str, folder: str | None, length: int) -> tuple[Files, int, int | None]:
    """The files for the tokenizer that the dataset at `prefix` was made with.

    Args:
        prefix: the dataset's path without ending.
        folder: where the tokenizer's file lies; None is beside the dataset.
        length: of the model, in tokens.

    Returns:
        The files, the tokenizer's vocabulary size and the id that ends documents.

    Raises:
        ConfigError: the tokenizer is not found, is another one, or is of a kind that has no such files.
    """
    info = dataset_tokenizer(prefix, folder).info
    spec = tokenizer_spec(info, Path(folder) if folder is not None else Path(prefix).parent)
    files = _files(spec)
    eod = None if info.eod_id is None else _token(files[MAIN], info.eod_id)
    files[SETTINGS] = _settings(eod, length)
    return files, info.vocab_size, info.eod_id


def copied_files(folder: str) -> tuple[Files, int, int | None]:
    """The tokenizer's files of a Hugging Face folder as they are; the rest as in `tokenizer_files`."""
    found = {name: Path(folder) / name for name in COPIED if (Path(folder) / name).is_file()}
    for path in found.values():
        _check_inside(path)
    if MAIN in found:
        library = hugging_face_library(found[MAIN])
    elif VOCAB in found and MERGES in found:
        library = gpt2_library(found[VOCAB], found[MERGES])
    else:
        raise ConfigError(f"{folder} has neither {MAIN} nor {VOCAB} and {MERGES}: there is no tokenizer in it.")
    files = {}
    for name, path in found.items():
        require_file(path, "--tokenizer")
        files[name] = path.read_bytes()
    ids: dict[str, int] = library.get_vocab(with_added_tokens=True)
    return files, max(ids.values(), default=-1) + 1, _end_id(ids, found.get(SETTINGS))


def _check_inside(path: Path) -> None:
    """A copy must not take along what lies elsewhere; in Hugging Face's cache the files are links to `../../blobs`."""
    where, folder = path.resolve(), path.parent.resolve()
    if where.parent not in (folder, folder.parent.parent / "blobs"):
        raise ConfigError(f"{path} is a link to {where}, outside of its folder. Put the file itself there.")


def check_dataset(prefix: str, folder: Path) -> None:
    """A dataset that is there must have been made with the tokenizer of the model's folder.

    Where there is no dataset yet, or one of them has no tokenizer beside it, there is nothing to compare.

    Raises:
        ConfigError: the two give different ids for PROBE.
    """
    sidecar = read_sidecar(dataset_paths(prefix).sidecar)
    if sidecar is None or sidecar.tokenizer is None or not (folder / MAIN).is_file():
        return
    theirs: list[int] = hugging_face_library(folder / MAIN).encode(PROBE, add_special_tokens=False).ids
    try:
        ours = dataset_tokenizer(prefix).encode_batch([PROBE])[0]
    except ConfigError:  # its file is elsewhere
        return
    if ours != theirs:
        raise ConfigError(
            f"{prefix} was made with {sidecar.tokenizer.name}, which gives other ids than {folder / MAIN}: the model "
            "would not know its text. Preprocess it again with --tokenizer-type HuggingFaceTokenizer --tokenizer-model "
            f"{folder / MAIN}."
        )


def _end_id(ids: Mapping[str, int], settings: Path | None) -> int | None:
    """The end of documents: what the settings name, else what such tokens are called."""
    if settings is not None:
        try:
            named = read_json(settings).get("eos_token")
        except ConfigError as error:
            raise ConfigError(f"{settings} {error}") from None
        named = named.get("content") if isinstance(named, dict) else named
        if isinstance(named, str) and named in ids:
            return ids[named]
    return next((ids[name] for name in EOD_NAMES if name in ids), None)


def _files(spec: TokenizerSpec) -> Files:
    if spec.type == "HuggingFaceTokenizer":
        return {MAIN: Path(spec.tokenizer_model or "").read_bytes()}
    if spec.type == "TikTokenizer":
        return {MAIN: _from_ranks(named_encoding(spec))}
    if spec.type == "GPT2BPETokenizer" and (spec.tokenizer_model or "").endswith(RANK_ENDING):
        return {MAIN: _from_ranks(gpt2_encoding(Path(spec.tokenizer_model or "")))}
    if spec.type == "GPT2BPETokenizer":
        vocab, merges = Path(spec.vocab_file or ""), Path(spec.merge_file or "")
        library = gpt2_library(vocab, merges)
        library.add_special_tokens([name for name in EOD_NAMES[:1] if library.token_to_id(name) is not None])
        return {MAIN: library.to_str().encode(), VOCAB: vocab.read_bytes(), MERGES: merges.read_bytes()}
    raise ConfigError(
        f"{spec.tokenizer_model} is a {spec.type}, which has no {MAIN}. Give --no-tokenizer, and copy the file itself "
        "to those who use the model."
    )


def _settings(eod: str | None, length: int) -> bytes:
    values: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; GPT2Tokenizer builds its own
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    if eod is not None:
        values |= {"bos_token": eod, "eos_token": eod}
    return json.dumps(values, indent=2).encode() + b"\n"


def _token(content: bytes, number: int) -> str | None:
    """How a tokenizer.json spells an id."""
    from tokenizers import Tokenizer as Library

    return Library.from_str(content.decode()).id_to_token(number)


def _from_ranks(encoding: tiktoken.Encoding) -> bytes:
    """A tokenizer.json with the ids of a tiktoken encoding."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    ranks, special = _ranks_of(encoding)
    pairs = merges_of(ranks)
    spelled = {byte: character for character, byte in bytes_of_characters().items()}

    def spell(token: bytes) -> str:
        return "".join(spelled[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()} | special
    alone = len(pairs) + 256 < len(ranks)  # tiktoken looks a whole word up first: some tokens have no other way
    model = models.BPE(vocab, [(spell(left), spell(right)) for left, right in pairs], ignore_merges=alone)
    library = Library(model)
    pattern = encoding._pat_str
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == GPT2_PATTERN)
    if pattern == GPT2_PATTERN:
        library.pre_tokenizer = byte_level
    else:  # to its regular expressions `{1,3}+` is a repetition of `{1,3}`, not a possessive one
        split = pre_tokenizers.Split(Regex(pattern.replace("{1,3}+", "{1,3}")), "isolated")
        library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(sorted(special, key=special.__getitem__))
    return str(library.to_str()).encode()


def _ranks_of(encoding: tiktoken.Encoding) -> tuple[dict[bytes, int], dict[str, int]]:
    special = {name: encoding.encode_single_token(name) for name in encoding.special_tokens_set}
    tokens = encoding.token_byte_values()
    return {token: encoding.encode_single_token(token) for token in tokens}, special


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each token was made of, in the order of the ranks; tokens that no two others make have none."""
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            made = [ranks.get(left + right, rank) for left, right in zip(parts, parts[1:], strict=False)]
            if (least := min(made)) >= rank:
                break
            at = made.index(least)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs
