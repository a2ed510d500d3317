"""What is no GPT-2 to train here, and what cannot be exported: one sentence, status 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from megatron_slw.data.writer import IndexedDatasetWriter
from tests.exchange.models import random_gpt2, write_base
from tools import export_hf, import_hf

pytest.importorskip("transformers")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `gpt2`, a base.json, and the checkpoint imported from it."""
    folder = tmp_path_factory.mktemp("original")
    random_gpt2(n_layer=2).save_pretrained(folder / "gpt2")
    base = write_base(folder)
    save = folder / "run" / "checkpoints" / "step_000000"
    assert import_hf.main(["--load", str(folder / "gpt2"), "--save", str(save), "--ds-config", str(base)]) == 0
    return folder


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def index(folder: Path, file: str) -> None:
    """Shards that are not as the index says."""
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    table = {name: file for name in names} | {"one more": "other.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def cut(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


WORDS, FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights to import"),
    "a pickle": (pickled, "can run any code"),
    "a cut file": (lambda f: cut(f / "model.safetensors", 9000), "not a whole safetensors file"),
    "a cut header": (lambda f: cut(f / "model.safetensors", 100), "not a whole safetensors file"),
    "a git-lfs pointer": (lambda f: (f / "model.safetensors").write_text("version https://git-lfs\n"), "git-lfs"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "an absurd header": (
        lambda f: (f / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}"), "not a whole"
    ),
    "another model": (lambda f: settings(f, model_type="llama"), 'model_type is "llama"'),
    "another activation": (lambda f: settings(f, activation_function="relu"), "gelu_new, gelu_pytorch_tanh or gelu"),
    "scaled by layer": (lambda f: settings(f, scale_attn_by_inverse_layer_idx=True), "can only have false"),
    "upcast": (lambda f: settings(f, reorder_and_upcast_attn=True), "reorder_and_upcast_attn is true"),
    "not scaled": (lambda f: settings(f, scale_attn_weights=False), "scale_attn_weights is false"),
    "cross attention": (lambda f: settings(f, add_cross_attention=True), "add_cross_attention"),
    "an untied head": (lambda f: settings(f, tie_word_embeddings=False), "tie_word_embeddings"),
    "quantized": (lambda f: settings(f, quantization_config={"bits": 4}), "quantized"),
    "a size that is none": (lambda f: settings(f, n_layer="two"), "n_layer"),
    "no vocabulary": (lambda f: settings(f, vocab_size=None), "vocab_size"),
    "heads that do not fit": (lambda f: settings(f, n_head=5), "n_head 5 does not divide"),
    "more layers than there are": (lambda f: settings(f, n_layer=3), "has no tensor transformer.h.2"),
    "fewer layers": (lambda f: settings(f, n_layer=1), "which GPT-2's language model does not"),
    "another vocabulary": (lambda f: settings(f, vocab_size=300), "must be [300, 32]"),
    "another tensor": (lambda f: tensors(f, lambda s: s.update(score=torch.ones(2))), '"score"'),
    "a missing tensor": (lambda f: tensors(f, lambda s: s.pop(FC)), f"no tensor {FC}"),
    "fp64": (lambda f: tensors(f, lambda s: s.update({FC: s[FC].double()})), "is F64, but weights"),
    "another head": (lambda f: tensors(f, lambda s: s.update({"lm_head.weight": s[WORDS] + 1})), "of its own"),
    "a shard outside": (lambda f: index(f, "../other.safetensors"), "not a plain .safetensors file"),
    "a shard missing": (lambda f: index(f, "model-1.safetensors"), "which is not there"),
    "a tensor missing in its shard": (lambda f: index(f, "other.safetensors"), '"one more" lies in'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused(original: Path, tmp_path: Path, capsys: Capture, case: str) -> None:
    change, wanted = BAD[case]
    folder = tmp_path / "gpt2"
    shutil.copytree(original / "gpt2", folder)
    change(folder)
    save = tmp_path / "run" / "checkpoints" / "step_000000"
    flags = ["--load", str(folder), "--save", str(save), "--ds-config", str(original / "base.json")]
    assert import_hf.main(flags) == 2
    said = capsys.readouterr().err.strip()
    assert wanted in said and "\n" not in said, said
    assert not (tmp_path / "run").exists(), "something was left behind"


FLAGS: dict[str, tuple[list[str], str]] = {
    "another step": (["--save", "NEW/checkpoints/step_000005"], "must end in step_000000"),
    "there already": (["--save", "OLD/checkpoints/step_000000"], "is there already"),
    "no settings": (["--ds-config", "none.json"], "none.json: cannot be read"),
    "a size": (["--model.num_layers=3"], "--model.num_layers cannot be set"),
    "an unknown setting": (["--trainin.seed=3"], "trainin"),
    "epochs without data": (["--training.train_steps=null", "--training.train_epochs=1"], "does not exist"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_settings_that_do_not_fit_are_refused(original: Path, tmp_path: Path, capsys: Capture, case: str) -> None:
    flags, wanted = FLAGS[case]
    given = [flag.replace("NEW", str(tmp_path)).replace("OLD", str(original / "run")) for flag in flags]
    save = str(tmp_path / "checkpoints" / "step_000000")
    common = ["--load", str(original / "gpt2"), "--save", save, "--ds-config", str(original / "base.json")]
    assert import_hf.main(common + given) == 2
    said = capsys.readouterr().err
    assert wanted in said, said
    assert not list(tmp_path.iterdir()), "something was left behind"


def dataset(folder: Path, vocab_size: int, word: str = "word") -> str:
    text = folder / "text.jsonl"
    text.write_text(json.dumps({"text": "".join(f"{word}{i} other{i * 7} " for i in range(400))}))
    train_byte_level_bpe([str(text)], str(folder / "tokenizer.json"), vocab_size, ["text"])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json"))
    preprocess(PreprocessSettings((str(text),), str(folder / "data"), spec))
    return str(folder / "data_text_document")


def test_what_cannot_be_exported_is_refused(original: Path, tmp_path: Path, capsys: Capture) -> None:
    load = original / "run" / "checkpoints" / "step_000000"
    work = tmp_path / "work"
    work.mkdir()
    small, large = dataset(work, 300), tmp_path / "large"
    large.mkdir()
    with IndexedDatasetWriter(work / "bare", np.dtype(np.uint16)) as writer:
        writer.add_document(np.arange(9))
        writer.finish()
    damaged = tmp_path / "damaged" / "step_000000"
    shutil.copytree(load, damaged)
    content = bytearray((damaged / "tensors-00000-000.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "tensors-00000-000.safetensors").write_bytes(bytes(content))
    foreign = tmp_path / "out.writing"
    cases: list[tuple[list[str], str]] = [
        (["--load", str(original / "gpt2")], "manifest.json"),
        (["--load", str(damaged), "--no-tokenizer"], "SHA-256"),
        ([], "data.json"),
        (["--dataset", str(work / "bare")], "names none"),
        (["--dataset", dataset(large, 350)], "knows 301: it is another one's"),
        (["--dataset", small, "--tokenizer-dir", str(large)], "another tokenizer"),
        (["--tokenizer", str(original / "gpt2")], "no tokenizer in it"),
        (["--no-tokenizer", "--save", str(work)], "is there already"),
    ]
    for flags, wanted in cases:
        assert export_hf.main(["--load", str(load), "--save", str(tmp_path / "out"), *flags]) == 2, flags
        said = capsys.readouterr().err.strip()
        assert wanted in said and "\n" not in said, said
        assert not (tmp_path / "out").exists() and not foreign.exists(), "something was left behind"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    assert export_hf.main(["--load", str(load), "--save", str(tmp_path / "out"), "--no-tokenizer"]) == 2
    assert "is in the way" in capsys.readouterr().err
    assert (foreign / "mine.txt").exists()


def test_data_of_another_tokenizer_is_refused(original: Path, tmp_path: Path, capsys: Capture) -> None:
    """Its ids are in range, so nothing later would say it."""
    shutil.copytree(original / "gpt2", tmp_path / "gpt2")
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    mine, other = dataset(tmp_path / "mine", 300), dataset(tmp_path / "other", 300, "I've naïve cafés of HERE ")
    shutil.copy(tmp_path / "mine" / "tokenizer.json", tmp_path / "gpt2")
    save = str(tmp_path / "run" / "checkpoints" / "step_000000")
    common = ["--load", str(tmp_path / "gpt2"), "--save", save, "--ds-config", str(original / "base.json")]
    assert import_hf.main([*common, f"--data.path={other}"]) == 2
    assert "gives other ids than" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "something was left behind"
    assert import_hf.main([*common, f"--data.path={mine}"]) == 0


def test_float16_refuses_what_it_cannot_hold(original: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(original / "gpt2", tmp_path / "gpt2")
    tensors(tmp_path / "gpt2", lambda state: state[FC].add_(1e6))
    save = tmp_path / "run" / "checkpoints" / "step_000000"
    common = ["--load", str(tmp_path / "gpt2"), "--save", str(save), "--ds-config", str(original / "base.json")]
    assert import_hf.main(common) == 0
    flags = ["--load", str(save), "--save", str(tmp_path / "out"), "--no-tokenizer", "--dtype", "float16"]
    assert export_hf.main(flags) == 2
    assert "beyond float16's 65504" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*")), "something was left behind"
