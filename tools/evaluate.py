"""Score text with a trained model: loss, perplexity and bits per byte, at the model's full length.

    python tools/evaluate.py --load runs/quickstart/grown/checkpoints/step_001400 --data held_out.jsonl

bits/byte = total negative log-likelihood in nats / ln 2 / UTF-8 bytes of the text. It counts every token,
those that end documents too, each exactly once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_slw.config.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`; return the exit status: 0, or 2 for wrong input."""
    args = parser().parse_args(argv)
    try:
        figures = evaluate(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    lines = [f"{name:<15}{value:,.4f}".removesuffix(".0000") for name, value in figures.items()]
    print(json.dumps(figures) if args.json else "\n".join(lines))
    return 0


def evaluate(args: argparse.Namespace) -> dict[str, float | int]:
    """What the text costs under the model."""
    from megatron_slw.checkpoint.inference import load_model  # imports torch: --help answers at once
    from megatron_slw.evaluation.perplexity import bits_per_byte, score_stream
    from megatron_slw.evaluation.text import dataset_tokenizer, document_stream, read_documents

    loaded = load_model(args.load, args.device)
    length = loaded.config.model.seq_length
    if not 0 <= args.overlap < length:
        raise ConfigError(f"--overlap must be 0 or more and below the model's length {length}.")
    tokenizer = dataset_tokenizer(args.dataset or loaded.config.data.corpora[0].prefix, args.tokenizer_dir)
    stream = document_stream(tokenizer, read_documents(args.data, args.json_key))
    if len(stream.ids) < 2:
        raise ConfigError(f"{args.data} has no text to score.")
    sizes = {"vocab_size": tokenizer.info.vocab_size, "length": length, "overlap": args.overlap}
    score = score_stream(loaded.model, stream.ids, starts=stream.starts, **sizes)
    return {
        "step": loaded.progress.step,
        "documents": stream.documents,
        "bytes": stream.text_bytes,
        "tokens": score.labels,
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": bits_per_byte(score.nats, stream.text_bytes),
    }


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--load", required=True, help="a checkpoint: .../checkpoints/step_000600")
    add("--data", required=True, help=".jsonl (one object a line) or .txt (one document)")
    add("--json-key", default="text", help="key of the text in a .jsonl (default: text)")
    add("--dataset", help="dataset whose sidecar names the tokenizer (default: the checkpoint's data.path)")
    add("--tokenizer-dir", help="folder of the tokenizer's file (default: beside the dataset)")
    add("--overlap", type=int, default=0, help="tokens of each window that only give context (default: 0)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--json", action="store_true", help="print one JSON object")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
