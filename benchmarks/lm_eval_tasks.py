"""LAMBADA and WikiText by lm-evaluation-harness itself, on local files and an exported model, without a network.

    HF_HUB_OFFLINE=1 python benchmarks/lm_eval_tasks.py MODEL --lambada FILE.jsonl --wikitext PAGES.jsonl

prints {task: {metric: value}}. The tasks are those that come with the harness, with the file in place of the data set;
WikiText's functions are its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

LAMBADA = """
task: local_lambada
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + continuation}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WIKITEXT = """
task: local_wikitext
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: !function preprocess_wikitext.wikitext_detokenizer
process_results: !function preprocess_wikitext.process_results
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""


def scores(model: str, lambada: str, wikitext: str, batch_size: int, folder: Path) -> dict[str, dict[str, float]]:
    """What the harness gives.

    Args:
        model: a Hugging Face folder.
        lambada: .jsonl of context and continuation.
        wikitext: .jsonl of page.
        batch_size: rows at once.
        folder: for its task files and caches.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (folder / "local_lambada.yaml").write_text(LAMBADA % json.dumps(str(Path(lambada).resolve())))
    (folder / "local_wikitext.yaml").write_text(WIKITEXT % json.dumps(str(Path(wikitext).resolve())))
    theirs = Path(lm_eval.__file__).parent / "tasks" / "wikitext" / "preprocess_wikitext.py"
    shutil.copy(theirs, folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = HFLM(pretrained=model, device="cpu", batch_size=batch_size)
    names = ["local_lambada", "local_wikitext"]
    found: Any = lm_eval.simple_evaluate(model=loaded, tasks=names, task_manager=manager, bootstrap_iters=0)
    figures = {name: found["results"][name].items() for name in names}
    return {
        name: {key.removesuffix(",none"): value for key, value in items if key.endswith(",none")}
        for name, items in figures.items()
    }


def command(model: Path, lambada: Path, wikitext: Path, cache: Path) -> list[str]:
    """The command line that prints the scores, without a network and with few lines of progress."""
    settings = {"HF_HOME": cache, "HF_HUB_OFFLINE": 1, "HF_DATASETS_OFFLINE": 1, "TQDM_MININTERVAL": 10}
    flags = [model, "--lambada", lambada, "--wikitext", wikitext]
    return ["env", *(f"{name}={value}" for name, value in settings.items()), sys.executable, __file__, *map(str, flags)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--lambada", required=True)
    parser.add_argument("--wikitext", required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(scores(args.model, args.lambada, args.wikitext, args.batch_size, Path(folder))))


if __name__ == "__main__":
    main()
