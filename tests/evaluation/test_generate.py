"""Texts repeat with their seed, end where they should, never hold a padding column; text is streamed whole."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from random_models import FixedLogits, random_model

from megatron_slw.config.schema import DataConfig
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_slw.data.tokenizer_training import train_byte_level_bpe, train_sentencepiece
from megatron_slw.evaluation.decoding import PlainDecoder, context_start, decoder_of, stream_batch
from megatron_slw.evaluation.generate import TextStream, Writer
from megatron_slw.evaluation.kv_cache import CachedDecoder
from megatron_slw.evaluation.sampling import Sampling

GREEDY = Sampling(temperature=0)


def take(
    model: torch.nn.Module, prompts: list[list[int]], count: int, sampling: Sampling, vocab: int = 300,
    cached: bool = True, **rest: Any,
) -> list[list[int]]:  # fmt: skip
    """The first `count` tokens after each prompt."""
    decoder = decoder_of(model, cached)
    found: list[list[int]] = [[] for _ in prompts]
    length = rest.pop("length", 32)
    steps = stream_batch(
        decoder, prompts, vocab_size=vocab, length=length, tokens=count, sampling=sampling, **rest
    )
    for step in steps:
        for row, token in step.items():
            found[row].append(token)
    return found


def test_greedy_is_the_argmax_of_the_context(tmp_path: Path) -> None:
    """Beyond the full length of 32 the older half is let go."""
    model = random_model(tmp_path)
    ids = [5, 7, 11]
    for _ in range(60):
        context = ids if len(ids) <= 32 else ids[16:] if len(ids) <= 48 else ids[32:]
        with torch.no_grad():
            ids.append(int(model(torch.tensor([context]))[0, -1, :300].argmax()))
    assert take(model, [[5, 7, 11]], 60, GREEDY) == [ids[3:]]
    assert take(model, [[5, 7, 11]], 60, Sampling(temperature=0, seed=9)) == [ids[3:]]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 32])
def test_the_context_is_the_last_half_to_whole_length(length: int) -> None:
    starts = [context_start(tokens, length) for tokens in range(1, 6 * length)]
    assert starts == sorted(starts)
    for tokens, start in enumerate(starts, 1):
        assert start == 0 if tokens <= length else max(length // 2, 1) <= tokens - start <= length
    assert len(set(starts)) <= 12 if length > 3 else True, "it moves with each token"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=3), Sampling(top_k=5, top_p=0.9)], ids=repr)
def test_text_is_the_same_with_and_without_a_cache(tmp_path: Path, sampling: Sampling) -> None:
    """Prompts of different lengths, one beyond the full length; texts that end at different times."""
    model = random_model(tmp_path).double()
    generator = random.Random(0)
    prompts = [[generator.randrange(300) for _ in range(size)] for size in (1, 9, 31, 50)]
    together = take(model, prompts, 45, sampling)
    assert together == take(model, prompts, 45, sampling, cached=False)
    stop = together[1][10]
    ended = take(model, prompts, 45, sampling, stop_id=stop)
    assert ended == take(model, prompts, 45, sampling, cached=False, stop_id=stop)
    assert ended == [row[: row.index(stop)] if stop in row else row for row in together], "a text changed its neighbour"
    assert take(model, prompts[:1], 45, sampling) == together[:1]


def test_seed_decides_and_global_random_state_does_not(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = take(model, [[1], [1]], 20, Sampling(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert take(model, [[1], [1]], 20, Sampling(seed=3)) == first
    assert take(model, [[1]], 20, Sampling(seed=4)) == first[1:] != first[:1]


def test_padding_columns_are_never_drawn() -> None:
    model = FixedLogits([0.0, 0.0, 0.0, 90.0, 90.0])
    assert set(take(model, [[0]], 200, Sampling(), vocab=3)[0]) == {0, 1, 2}
    assert set(take(model, [[0]], 5, GREEDY, vocab=3)[0]) <= {0, 1, 2}


def test_stop_id_ends_the_text() -> None:
    model = FixedLogits([0.0, 5.0])
    assert take(model, [[0], [0]], 4, GREEDY, vocab=2, length=8, stop_id=1) == [[], []]
    assert model.lengths == [1], "it went on after the end"


def test_nothing_is_computed_after_the_last_token() -> None:
    model = FixedLogits([0.0, 0.0])
    take(model, [[0]], 3, Sampling(), vocab=2)
    assert model.lengths == [1, 2, 3]


def test_prompt_must_be_known_tokens() -> None:
    model = FixedLogits([0.0, 0.0, 0.0])
    for prompt in ([], [3], [-1]):
        with pytest.raises(ValueError, match="prompt"):
            take(model, [[0], prompt], 1, Sampling(), vocab=3)


def test_a_gpt_has_a_cache_by_itself(tmp_path: Path) -> None:
    assert isinstance(decoder_of(random_model(tmp_path)), CachedDecoder)
    assert isinstance(decoder_of(random_model(tmp_path), cached=False), PlainDecoder)


TEXT = "def f(x):\n    return 'é 東京 🦊'  # and so on, 🦊🦊 "


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    lines = [json.dumps({"text": f"def f{i}(x): return {i * 3} and so on"}) + "\n" for i in range(300)]
    (folder / "text.jsonl").write_text("".join(lines))
    train_byte_level_bpe([str(folder / "text.jsonl")], str(folder / "tokenizer.json"), 300, ["text"])
    train_sentencepiece([str(folder / "text.jsonl")], str(folder / "own.model"), 320)
    return {
        "bytes": load_tokenizer(TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json"))),
        "sentencepiece": load_tokenizer(
            TokenizerSpec("SentencePieceTokenizer", tokenizer_model=str(folder / "own.model"))
        ),
    }


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_streamed_pieces_are_the_text_and_no_character_is_cut(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode_batch([TEXT])[0]
    whole = tokenizer.decode(ids)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.end() == whole
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 10, "it came in one piece"


@pytest.mark.parametrize("seed", range(20))
def test_streamed_bytes_that_are_no_text_come_through(tokenizers: dict[str, Tokenizer], seed: int) -> None:
    """Random tokens: most byte sequences of a model that knows nothing are not UTF-8."""
    tokenizer, generator = tokenizers["bytes"], random.Random(seed)
    ids = [generator.randrange(1, 290) for _ in range(60)]
    before = ids[: seed % 3]
    stream = TextStream(tokenizer, tokenizer.encode_batch(["so"])[0] if before else ())
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.end() == tokenizer.decode(ids)


def writer(model: torch.nn.Module, tokenizer: Tokenizer, tmp_path: Path, **data: Any) -> Writer:
    config = SimpleNamespace(vocab_size=tokenizer.info.vocab_size, seq_length=32)
    return Writer(decoder_of(model), config, DataConfig(path=str(tmp_path), **data), tokenizer)  # type: ignore[arg-type]


def test_a_prompt_stands_where_a_document_begins(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers["bytes"]
    eod, ids = tokenizer.info.eod_id, tokenizer.encode_batch(["def"])[0]
    model = FixedLogits([0.0] * 300)
    assert writer(model, tokenizer, tmp_path).prompt_ids("def") == [eod, *ids]
    alone = writer(model, tokenizer, tmp_path, reset_attention_mask=True)
    assert (alone.prompt_ids("def"), alone.prompt_ids("")) == (ids, [eod])


def test_whole_texts_are_the_streamed_ones(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers["bytes"]
    model = random_model(tmp_path, vocab_size=tokenizer.info.vocab_size, std=0.1)
    made = writer(model, tokenizer, tmp_path)
    prompts = ["def f", "", "é" * 30]
    texts = ["", "", ""]
    for row, piece in made.stream(prompts, 40, Sampling(seed=1)):
        texts[row] += piece
    assert texts == made.write(prompts, 40, Sampling(seed=1))
    assert made.unseen("x") == 0 and made.unseen("é" * 30) > 0
