"""Models from Hugging Face and back: the same bytes, the same logits, and a whole life in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_slw.checkpoint.inference import load_model
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import load_config
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec, load_tokenizer
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from megatron_slw.growth import stream
from megatron_slw.testing import WorkerPool
from tests.checkpoint import jobs
from tests.exchange.models import LENGTH, VOCAB, logits_of, random_gpt2, relative, write_base
from tools import export_hf, grow_checkpoint, import_hf

transformers = pytest.importorskip("transformers")
STEP0 = "checkpoints/step_000000"


def imported(load: Path, run: Path, *flags: str, **changes: Any) -> Path:
    """A folder imported; the checkpoint."""
    save = run / STEP0
    base = write_base(load.parent, **changes)
    assert import_hf.main(["--load", str(load), "--save", str(save), "--ds-config", str(base), *flags]) == 0
    return save


def exported(load: Path, save: Path, *flags: str) -> Path:
    assert export_hf.main(["--load", str(load), "--save", str(save), *flags]) == 0
    return save


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_inner": 56, "n_head": 2}, {"activation_function": "gelu", "layer_norm_epsilon": 1e-3}],
    ids=["plain", "feed-forward", "exact gelu"],
)
def test_round_trip_gives_the_same_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = random_gpt2(**changes)
    model.save_pretrained(tmp_path / "gpt2")
    out = exported(imported(tmp_path / "gpt2", tmp_path / "run"), tmp_path / "out", "--no-tokenizer")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "gpt2" / "model.safetensors").read_bytes()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_import_computes_the_same(tmp_path: Path) -> None:
    """In our own model; also from a file of half precision, without the prefix, with masks and a copied head."""
    from safetensors.torch import save_file

    model = random_gpt2().bfloat16()
    model.save_pretrained(tmp_path / "gpt2")
    state = {f"{name}": value for name, value in model.transformer.state_dict().items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bfloat16) for i in range(11)}
    state["lm_head.weight"] = state["wte.weight"].clone()
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "gpt2" / "model.safetensors")
    ours = load_model(imported(tmp_path / "gpt2", tmp_path / "run")).model
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCAB, (3, LENGTH), generator=generator)
    with torch.no_grad():
        assert relative(ours(tokens)[..., :VOCAB], logits_of(model.float())) < 1e-5


def test_half_precision_and_shards_go_through(tmp_path: Path) -> None:
    model = random_gpt2(n_embd=64, n_layer=12).bfloat16()
    model.save_pretrained(tmp_path / "gpt2", max_shard_size="400KB")
    assert len(list((tmp_path / "gpt2").glob("model-*.safetensors"))) > 2
    save = imported(tmp_path / "gpt2", tmp_path / "run")
    flags = ("--no-tokenizer", "--dtype", "bfloat16")
    whole = exported(save, tmp_path / "whole", *flags)
    parts = exported(save, tmp_path / "parts", *flags, "--shard-mb", "1")
    assert len(list(parts.glob("model-*.safetensors"))) == 2
    for out in (whole, parts):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert loaded.dtype == torch.bfloat16
        for (name, found), wanted in zip(loaded.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(found, wanted), name


def test_a_whole_life(pool: WorkerPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Imported, trained, grown, trained, exported; model and tokenizer load and give our logits and our ids."""
    text = tmp_path / "text.jsonl"
    texts = [f"def f{i}(x):\n    return x + {i}  # é\n" * 3 for i in range(60)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in texts))
    train_byte_level_bpe([str(text)], str(tmp_path / "tokenizer.json"), 290, ["text"])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(tmp_path / "tokenizer.json"))
    preprocess(PreprocessSettings((str(text),), str(tmp_path / "data"), spec, append_eod=True))
    random_gpt2(n_layer=2).save_pretrained(tmp_path / "gpt2")
    flags = (f"--data.path={tmp_path}/data_text_document", "--model.hidden_dropout=0.1")
    imported(tmp_path / "gpt2", tmp_path / "small", *flags)
    config = load_config(tmp_path / "small" / "ds_config.json")
    assert (config.model.hidden_dropout, config.model.seq_length) == (0.1, LENGTH)
    trained = pool.run(jobs.run, 1, (config, 3, (3,)))[0]
    assert trained["start"].step == 0 and not trained["restored"]
    small, large = (tmp_path / run / "checkpoints" / "step_000003" for run in ("small", "large"))
    assert grow_checkpoint.main(["--load", str(small), "--save", str(large), "--depth", "2", "--width", "2"]) == 0
    pool.run(jobs.run, 1, (load_config(tmp_path / "large" / "ds_config.json"), 5, (5,)))
    last = large.with_name("step_000005")
    out = exported(last, tmp_path / "out")
    assert "tokenizer.json" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert relative(theirs(tokens).logits, load_model(last).model(tokens)[..., :VOCAB]) < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = load_tokenizer(spec).encode_batch(texts[:3])
    assert tokenizer(texts[:3])["input_ids"] == ids
    assert tokenizer.decode(ids[0]) == texts[0]
    assert theirs.config.eos_token_id == tokenizer.eos_token_id == 0


def test_a_kill_leaves_no_folder_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_gpt2(n_embd=64, n_layer=12).save_pretrained(tmp_path / "gpt2")
    save = imported(tmp_path / "gpt2", tmp_path / "run")
    original = stream.write_file
    made: list[str] = []

    def killed(path: Path, *rest: Any) -> Any:
        if made:
            raise KeyboardInterrupt("killed")
        made.append(path.name)
        return original(path, *rest)

    monkeypatch.setattr(stream, "write_file", killed)
    flags = ["--no-tokenizer", "--shard-mb", "1", "--workers", "1"]
    with pytest.raises(KeyboardInterrupt):
        exported(save, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
    again: list[str] = []
    monkeypatch.setattr(stream, "write_file", lambda path, *rest: (again.append(path.name), original(path, *rest))[1])
    exported(save, tmp_path / "out", *flags)
    assert again and not set(again) & set(made), "what was whole already was written again"
    monkeypatch.undo()
    exported(save, tmp_path / "straight", *flags)
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert not list(tmp_path.glob("*.writing"))


def test_an_imported_optimizer_has_not_stepped(tmp_path: Path) -> None:
    random_gpt2().save_pretrained(tmp_path / "gpt2")
    checkpoint = Checkpoint(imported(tmp_path / "gpt2", tmp_path / "run"))
    assert checkpoint.progress.step == checkpoint.optimizer_steps == 0
    moments = [key for key in checkpoint.shapes if not key.startswith("weight/")]
    assert len(moments) == 2 * sum(key.startswith("weight/") for key in checkpoint.shapes)
    assert not any(checkpoint.tensor(key).any() for key in moments)
    assert not checkpoint.tensor("weight/embedding.word_embeddings.weight")[VOCAB:].any()
