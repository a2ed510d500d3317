"""The tokenizer that a dataset was made with, found again by what its sidecar says."""

from __future__ import annotations

from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.layout import dataset_paths
from megatron_slw.data.sidecar import TokenizerInfo, read_sidecar
from megatron_slw.data.tiktoken_ranks import RANK_ENDING
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer


def dataset_tokenizer(prefix: str | Path, folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer that the dataset at `prefix` was made with, as its sidecar names it.

    Args:
        prefix: the dataset's path without ending, `data.path` of a run.
        folder: where the tokenizer's file lies; None is beside the dataset.

    Raises:
        ConfigError: the sidecar or the tokenizer's file is missing, or the file is another tokenizer.
    """
    sidecar_path = dataset_paths(prefix).sidecar
    sidecar = read_sidecar(sidecar_path)
    if sidecar is None or sidecar.tokenizer is None:
        raise ConfigError(
            f"{sidecar_path}, which names the tokenizer, is missing or names none. Give the dataset that the "
            "model was trained on by --dataset."
        )
    expected = sidecar.tokenizer
    spec = tokenizer_spec(expected, Path(folder) if folder is not None else Path(prefix).parent)
    try:
        tokenizer = load_tokenizer(spec)
    except ConfigError as error:
        raise ConfigError(f"{error} --tokenizer-dir says where {expected.name} lies.") from None
    if tokenizer.info.sha256 != expected.sha256:
        raise ConfigError(
            f"{expected.name} has SHA-256 {tokenizer.info.sha256[:12]}, but {sidecar_path} was made with "
            f"{expected.sha256[:12]}: it is another tokenizer. --tokenizer-dir says where the right one lies."
        )
    return tokenizer


def tokenizer_spec(info: TokenizerInfo, folder: Path) -> TokenizerSpec:
    """How to load what `info` names, with the files in `folder`."""
    if info.type == "GPT2BPETokenizer" and not info.name.endswith(RANK_ENDING):
        vocab, _, merges = info.name.partition(" ")
        return TokenizerSpec(info.type, vocab_file=str(folder / vocab), merge_file=str(folder / merges))
    if info.type == "TikTokenizer" and not info.name.endswith(RANK_ENDING):  # an encoding, no file
        return TokenizerSpec(info.type, tokenizer_model=info.name)
    return TokenizerSpec(info.type, tokenizer_model=str(folder / info.name))
