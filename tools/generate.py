"""Let a trained model go on from a prompt.

python tools/generate.py --load runs/quickstart/grown/checkpoints/step_000640 --prompt "def get_path("
python tools/generate.py --load runs/quickstart/grown/checkpoints/step_000640 --interactive
python tools/generate.py --load runs/quickstart/grown/checkpoints/step_000640 --prompts my.jsonl --json > texts.jsonl

Exit status: 0, 2 for wrong input, 130 after Ctrl-C; what was written until then stands.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status."""
    args = parser().parse_args(argv)
    try:
        generate(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    return 0


def generate(args: argparse.Namespace) -> None:
    """Read the prompts, load the model, write."""
    from megatron_slw.evaluation import prompts as show  # imports torch: --help answers at once
    from megatron_slw.evaluation.generate import load_writer, samplings_of

    samplings = samplings_of(args.temperature, args.top_k, args.top_p, args.seed, args.samples, args.tokens)
    many = show.read_prompts(args.prompts) if args.prompts else []
    prompt = show.read_text(args.prompt_file) if args.prompt_file else args.prompt
    writer = load_writer(args.load, args.dataset, args.tokenizer_dir, args.device, not args.no_cache)
    if args.prompts:
        show.write_file(writer, many, args.tokens, samplings[0], args.batch, args.json, sys.stdout)
    elif args.interactive:
        show.interactive(writer, args.tokens, samplings, sys.stdin, sys.stdout)
    else:
        show.write_prompt(writer, prompt, args.tokens, samplings, sys.stdout)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, one = result.add_argument, result.add_mutually_exclusive_group().add_argument
    add("--load", required=True, help="a checkpoint: .../checkpoints/step_000600")
    one("--prompt", default="", help="text to go on from (default: nothing, the beginning of a document)")
    one("--prompt-file", metavar="FILE", help="go on from the whole text of a file")
    one("--prompts", metavar="FILE", help='a prompt a line, or {"prompt": text} a line where it ends in .jsonl')
    one("--interactive", action="store_true", help="ask for a prompt, go on from it, ask again")
    add("--tokens", type=int, default=128, help="at most this many tokens (default: 128)")
    add("--samples", type=int, default=1, help="texts to write of a prompt (default: 1)")
    add("--batch", type=int, default=8, help="prompts of --prompts written at once (default: 8)")
    add("--json", action="store_true", help="a JSON object for each of --prompts")
    add("--temperature", type=float, default=0.8, help="0 takes the most probable token (default: 0.8)")
    add("--top-k", type=int, default=50, help="draw from the k most probable tokens (default: 50)")
    add("--top-p", type=float, help="draw from the most probable tokens that together have this probability")
    add("--seed", type=int, default=0, help="of the first text (default: 0)")
    add("--no-cache", action="store_true", help="compute the whole text again for each token, to compare")
    add("--dataset", help="dataset whose sidecar names the tokenizer (default: the checkpoint's data.path)")
    add("--tokenizer-dir", help="folder of the tokenizer's file (default: beside the dataset)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
