"""Let a trained model go on from a prompt.

python tools/generate.py --load runs/quickstart/checkpoints/step_000600 --prompt "def get_path("
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for wrong input."""
    args = parser().parse_args(argv)
    try:
        for number, text in enumerate(continuations(args)):
            print("-" * 40 + "\n" if number else "", args.prompt, text, sep="", flush=True)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def continuations(args: argparse.Namespace) -> Iterator[str]:
    """Yield what the model writes after the prompt, `--samples` times, with seeds that count up."""
    from megatron_slw.checkpoint.inference import load_model  # imports torch: --help answers at once
    from megatron_slw.evaluation.generate import Sampling, generate_text
    from megatron_slw.evaluation.text import dataset_tokenizer

    try:
        samplings = [Sampling(args.temperature, args.top_k, args.top_p, args.seed + i) for i in range(args.samples)]
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    loaded = load_model(args.load, args.device)
    tokenizer = dataset_tokenizer(args.dataset or loaded.config.data.corpora[0].prefix, args.tokenizer_dir)
    for sampling in samplings:
        yield generate_text(loaded.model, loaded.config.model, tokenizer, args.prompt, args.tokens, sampling)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--load", required=True, help="a checkpoint: .../checkpoints/step_000600")
    add("--prompt", default="", help="text to go on from (default: nothing, the beginning of a document)")
    add("--tokens", type=int, default=128, help="at most this many tokens (default: 128)")
    add("--samples", type=int, default=1, help="texts to write (default: 1)")
    add("--temperature", type=float, default=0.8, help="0 takes the most probable token (default: 0.8)")
    add("--top-k", type=int, default=50, help="draw from the k most probable tokens (default: 50)")
    add("--top-p", type=float, help="draw from the most probable tokens that together have this probability")
    add("--seed", type=int, default=0, help="of the first text (default: 0)")
    add("--dataset", help="dataset whose sidecar names the tokenizer (default: the checkpoint's data.path)")
    add("--tokenizer-dir", help="folder of the tokenizer's file (default: beside the dataset)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
