"""A whole real corpus through our own preprocessing: the golden count, and every id of the reference library."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from tests.data.real_corpus import ADDRESSES, TEXT_BYTES, RealCorpus, real_corpus

__all__ = ["real_corpus"]

ONE_DOCUMENT = 2_074_249
"""GPT-2 tokens of all addresses as one text: the golden count."""
MANY_DOCUMENTS = 2_074_279
"""Of each address by itself: 30 more, where a line end would have joined the blanks before it or a word after."""


@pytest.fixture
def spec(real_corpus: RealCorpus) -> TokenizerSpec:
    return TokenizerSpec("GPT2BPETokenizer", str(real_corpus.vocab), str(real_corpus.merges))


def test_golden_count_and_every_id(real_corpus: RealCorpus, spec: TokenizerSpec, tmp_path: Path) -> None:
    texts = [path.read_bytes().decode("utf-8") for path in real_corpus.texts]
    assert (len(texts), sum(len(text.encode()) for text in texts)) == (ADDRESSES, TEXT_BYTES)
    (tmp_path / "all.txt").write_bytes("".join(texts).encode())
    inputs = (str(tmp_path / "all.txt"), *map(str, real_corpus.texts))
    preprocess(PreprocessSettings(inputs, str(tmp_path / "sotu"), spec, append_eod=True))
    dataset = IndexedDataset(tmp_path / "sotu_text_document")
    verify_checksums(dataset)

    assert dataset.num_documents == 1 + ADDRESSES
    assert len(dataset.document(0)) == ONE_DOCUMENT + 1, "and the end of the document"
    assert dataset.num_tokens == ONE_DOCUMENT + MANY_DOCUMENTS + 1 + ADDRESSES
    assert dataset.sidecar is not None and dataset.sidecar.text_bytes == 2 * TEXT_BYTES

    reference = gpt2(real_corpus)
    for number, text in enumerate(["".join(texts), *texts]):
        assert dataset.document(number).tolist() == [*reference.encode_ordinary(text), 50_256]
    assert load_tokenizer(spec).decode(dataset.document(1)[:-1].tolist()) == texts[0]


def test_the_other_library_agrees(real_corpus: RealCorpus, spec: TokenizerSpec) -> None:
    from tokenizers import ByteLevelBPETokenizer

    library = ByteLevelBPETokenizer(str(real_corpus.vocab), str(real_corpus.merges))
    texts = [path.read_bytes().decode("utf-8") for path in real_corpus.texts[::4]]
    tokenizer = load_tokenizer(spec)
    assert tokenizer.encode_batch(texts) == [found.ids for found in library.encode_batch(texts)]


def gpt2(corpus: RealCorpus) -> tiktoken.Encoding:
    """The reference: tiktoken's own reading of GPT-2's files and its own splitting."""
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = data_gym_to_mergeable_bpe_ranks(str(corpus.merges), str(corpus.vocab))
    return tiktoken.Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50_256}
    )
