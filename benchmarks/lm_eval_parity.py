"""LAMBADA and WikiText-2 by tools/evaluate.py and by lm-evaluation-harness, the same trained model, side by side.

    python benchmarks/lm_eval_parity.py [--data DIR] [--work DIR] [--load CHECKPOINT] [--json FILE]

DIR has lambada_openai.jsonl, wikitext-2-test.txt and wikitext-2-valid.txt (default: ../shared/data). A small GPT is
trained on the validation articles (or the model of --load is taken), exported by tools/export_hf.py, and scored on the
two whole files. What --work holds already is not made again. Needs lm-eval 0.4.13 (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import lm_eval_tasks  # noqa: E402
from megatron_slw.checkpoint.load import Checkpoint  # noqa: E402
from megatron_slw.evaluation.wikitext import articles, detokenize  # noqa: E402

STEPS, LENGTH, VOCABULARY = 600, 128, 2048
FIGURES = {  # ours, and what the harness calls it
    ("lambada", "accuracy"): ("local_lambada", "acc"),
    ("lambada", "perplexity"): ("local_lambada", "perplexity"),
    ("wikitext", "word_perplexity"): ("local_wikitext", "word_perplexity"),
    ("wikitext", "bits_per_byte"): ("local_wikitext", "bits_per_byte"),
}


def configuration(work: Path) -> dict[str, Any]:
    """Two layers with a short length warmup: minutes on a CPU."""
    curriculum = {"min_difficulty": 16, "max_difficulty": LENGTH, "schedule_type": "fixed_linear"}
    ramp = {"total_curriculum_step": STEPS // 3, "difficulty_step": 16}
    metrics = {"seqlen_truncate": {**curriculum, "schedule_config": ramp}}
    return {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 16,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-3, "weight_decay": 0.1}},
        "data_efficiency": {"data_sampling": {"curriculum_learning": {"enabled": True, "curriculum_metrics": metrics}}},
        "megatron_slw": {
            "model": {
                "num_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "seq_length": LENGTH,
                "hidden_dropout": 0.0, "attention_dropout": 0.0,
            },
            "data": {"path": str(work / "train_text_document"), "split": "97,3,0"},
            "training": {"train_steps": STEPS, "lr_warmup_steps": 50},
            "evaluation": {"interval": STEPS // 3, "samples": 64},
            "checkpoint": {"interval": 0},
            "logging": {"directory": str(work / "run"), "interval": 50, "tensorboard": False},
        },
    }  # fmt: skip


def run(*command: object) -> str:
    """A tool of this repository; what it printed."""
    print("+", *[str(part).replace(f"{ROOT}/", "") for part in command], file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def trained(data: Path, work: Path) -> Path:
    """The checkpoint, made if it is not there."""
    checkpoint = work / "run" / "checkpoints" / f"step_{STEPS:06d}"
    if not checkpoint.exists():
        pages = articles((data / "wikitext-2-valid.txt").read_text())
        write_jsonl(work / "train.jsonl", "text", [detokenize(page) for page in pages])
        tokenizer = work / "tokenizer.json"
        made = ("--vocab-size", VOCABULARY, "--output", tokenizer)
        run("tools/train_tokenizer.py", "--input", work / "train.jsonl", *made)
        kind = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer, "--append-eod")
        run("tools/preprocess_data.py", "--input", work / "train.jsonl", "--output-prefix", work / "train", *kind)
        (work / "ds.json").write_text(json.dumps(configuration(work)))
        run("pretrain_gpt.py", "--ds-config", work / "ds.json")
    return checkpoint


def write_jsonl(path: Path, key: str, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))


def measure(data: Path, work: Path, checkpoint: Path) -> dict[str, Any]:
    """Both sides' figures."""
    exported = work / "exported"
    if not exported.exists():
        run("tools/export_hf.py", "--load", checkpoint, "--save", exported)
    files = {"lambada": data / "lambada_openai.jsonl", "wikitext": data / "wikitext-2-test.txt"}
    ours = {}
    for task, path in files.items():
        flags = ("--load", checkpoint, "--task", task, "--data", path, "--json", "--device", "cpu")
        ours[task] = json.loads(run("tools/evaluate.py", *flags))
    write_jsonl(work / "pages.jsonl", "page", articles(files["wikitext"].read_text()))
    command = lm_eval_tasks.command(exported, files["lambada"], work / "pages.jsonl", work / "cache")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    rows = [
        {"figure": f"{task} {name}", "ours": ours[task][name], "lm_eval": theirs[their_task][their_name]}
        for (task, name), (their_task, their_name) in FIGURES.items()
    ]
    model = Checkpoint(checkpoint).config.model
    sizes = ("num_layers", "hidden_size", "seq_length", "vocab_size")
    return {
        "model": {name: getattr(model, name) for name in sizes} | {"step": ours["lambada"]["step"]},
        "examples": ours["lambada"]["examples"], "articles": ours["wikitext"]["articles"],
        "tokens": ours["wikitext"]["tokens"], "figures": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, help="keep everything here (default: a temporary folder)")
    parser.add_argument("--load", type=Path, help="a checkpoint to score instead of training one")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        data = args.data.resolve()
        found = measure(data, work, args.load.resolve() if args.load else trained(data, work))
    for row in found["figures"]:
        ours, theirs = row["ours"], row["lm_eval"]
        apart = abs(ours - theirs) / max(abs(theirs), 1e-12)
        print(f"{row['figure']:<26}ours {ours:<12.6g}lm-eval {theirs:<12.6g}relative difference {apart:.1e}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
