"""The six steps of the quickstart, and the line that each prints."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import corpus
import figures
from closing import print_closing
from stamps import Facts, Stamp, Stamps, write_json
from training import RANKS, ROOT, Training, train

from megatron_slw.checkpoint.format import MANIFEST
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config, to_json, with_vocab_size
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.layout import dataset_paths
from megatron_slw.data.sidecar import Sidecar, file_sha256, read_sidecar
from megatron_slw.report.curves import draw_run
from megatron_slw.slw.compile import compile_plan
from megatron_slw.train.estimate import parameters
from megatron_slw.train.metrics import FILE_NAME
from megatron_slw.train.units import count_text, duration_text, rate_text

STEPS = ("corpus", "tokenizer", "dataset", "pretrain", "evaluate", "report")
VERSION = "1"  # of what the steps do: another one makes every step run again
WIDTH = 96


class CommandFailed(RuntimeError):
    """A tool ended with an error; the message is what it printed."""


@dataclass(frozen=True)
class Settings:
    """What to train on, and where everything goes."""

    corpus: Path | None
    """The user's JSONL; None takes the standard library."""
    data: Path
    run: Path
    config: Path
    overrides: tuple[str, ...] = ()
    """For pretrain_gpt.py."""
    vocab_size: int = 8192


class Quickstart:
    """Runs the steps in order; each finds what the ones before it made by path."""

    def __init__(self, settings: Settings) -> None:
        data, run = settings.data, settings.run
        self.settings = settings
        self.train_text, self.held_out_text = data / "train.jsonl", data / "held_out.jsonl"
        self.tokenizer = data / "tokenizer.json"
        # preprocess_data.py appends the key and "document" to its --output-prefix.
        self.train_data, self.held_out_data = data / "train_text_document", data / "held_out_text_document"
        self.data_stamps, self.run_stamps = Stamps(data / "steps"), Stamps(run / "steps")
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Do what is left to do, and say what came out."""
        print(f"megatron_slw quickstart · {RANKS} CPU ranks · no GPU needed · about 8 minutes", flush=True)
        documents = self.prepare_corpus()
        self.train_tokenizer()
        self.prepare_dataset()
        training = self.pretrain()
        evaluation = self.evaluate()
        summary = self.report({"corpus": documents, **training, **evaluation})
        print_closing(summary)

    def prepare_corpus(self) -> Facts:
        """Step 1: the text, and what of it is held out."""
        path = self.settings.corpus
        what = f"files of the {corpus.LIBRARY}" if path is None else "documents"
        if path is None:
            source = partial(corpus.library_documents, corpus.library_folder())
        else:
            source = partial(corpus.file_documents, path)
        facts = self._step(
            self.data_stamps,
            "corpus",
            {"text": corpus.corpus_sha256(source)},
            [self.train_text, self.held_out_text],
            lambda: asdict(corpus.write_split(source, self.train_text, self.held_out_text)),
            lambda facts: (
                f"{facts['documents']:,} {what}, {facts['bytes'] / 1e6:.1f} MB ({facts['held_out']} held out)"
            ),
        )
        return {"name": corpus.LIBRARY if path is None else str(path), **facts}

    def train_tokenizer(self) -> None:
        """Step 2: a byte-level BPE, on the training text alone."""
        size = self.settings.vocab_size
        make = partial(
            run_tool,
            "train_tokenizer",
            ["--input", self.train_text, "--vocab-size", size, "--output", self.tokenizer],
        )
        inputs = {"text": file_sha256(self.train_text), "size": str(size)}
        text = f"byte-level BPE, {size:,} pieces"
        self._step(self.data_stamps, "tokenizer", inputs, [self.tokenizer], make, lambda _: text)

    def prepare_dataset(self) -> None:
        """Step 3: both texts as tokens."""

        def make() -> Facts:
            for text, prefix in ((self.train_text, "train"), (self.held_out_text, "held_out")):
                output = self.settings.data / prefix
                flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", self.tokenizer]
                run_tool("preprocess_data", ["--input", text, "--output-prefix", output, *flags, "--append-eod"])
            train, held_out = sidecar_of(self.train_data), sidecar_of(self.held_out_data)
            tokens, size = (
                train.tokens + held_out.tokens,
                (train.text_bytes or 0) + (held_out.text_bytes or 0),
            )
            return {"tokens": tokens, "bytes_per_token": round(size / tokens, 2)}

        sources = (self.train_text, self.held_out_text, self.tokenizer)
        outputs = [*dataset_paths(self.train_data), *dataset_paths(self.held_out_data)]
        self._step(
            self.data_stamps,
            "dataset",
            {path.name: file_sha256(path) for path in sources},
            outputs,
            make,
            lambda facts: (
                f"{count_text(facts['tokens'])} tokens, {facts['bytes_per_token']:.2f} bytes/token"
                f" -> {self.settings.data}"
            ),
        )

    def pretrain(self) -> Facts:
        """Step 4: the real job under the real launcher."""
        train_sidecar = sidecar_of(self.train_data)
        training, config = self.training(vocabulary_of(train_sidecar))
        inputs = {
            "config": text_sha256(json.dumps(to_json(config), sort_keys=True)),
            "train": train_sidecar.bin_sha256,
            "held_out": sidecar_of(self.held_out_data).bin_sha256,
        }
        self.set_other_run_aside(inputs)
        metrics = self.settings.run / FILE_NAME

        def make() -> Facts:
            self._announce("pretrain", describe(config, training.total_steps))
            self._note(training.shown_command)
            train(training, self._note)
            return {"parameters": parameters(config.model), **figures.training_figures(metrics)}

        return self._step(
            self.run_stamps,
            "pretrain",
            inputs,
            [metrics, training.final_checkpoint / MANIFEST],
            make,
            lambda facts: (
                f"{facts['steps']:,} steps, {count_text(facts['tokens'])} tokens, "
                f"{rate_text(facts['tokens_per_s'])} tok/s, resumed at step {facts['resumed_at_step']}"
            ),
        )

    def evaluate(self) -> Facts:
        """Step 5: bits per byte of the held-out text."""
        training, _ = self.training(vocabulary_of(sidecar_of(self.train_data)))
        texts = corpus.read_texts(self.held_out_text)
        return self._step(
            self.run_stamps,
            "evaluate",
            {
                "model": file_sha256(training.final_checkpoint / MANIFEST),
                "text": file_sha256(self.held_out_text),
            },
            [],
            lambda: figures.held_out_figures(training.final_checkpoint, self.held_out_data, texts),
            lambda facts: (
                f"held-out {facts['val_bits_per_byte']:.3f} bits/byte   (gzip -9: "
                f"{facts['gzip_bits_per_byte']:.3f}   unigram: {facts['unigram_bits_per_byte']:.3f})"
            ),
        )

    def report(self, facts: Facts) -> dict[str, Any]:
        """Step 6: the picture, samples, and all figures in one file."""
        training, _ = self.training(vocabulary_of(sidecar_of(self.train_data)))
        run, checkpoint = self.settings.run, training.final_checkpoint
        picture, summary_path = run / "report.png", run / "summary.json"
        prompts: Sequence[str] = figures.SAMPLE_PROMPTS
        if self.settings.corpus is not None:
            prompts = [figures.first_words(t) for t in corpus.read_texts(self.held_out_text)[:3]]

        def make() -> Facts:
            start = time.monotonic()
            draw_run(run, picture)
            samples = figures.write_samples(checkpoint, self.train_data, prompts)
            seconds = {**self.seconds, "report": round(time.monotonic() - start, 1)}
            files = {
                "summary": summary_path,
                "report": picture,
                "metrics": run / FILE_NAME,
                "checkpoint": checkpoint,
                "tokenizer": self.tokenizer,
                "dataset": f"{self.train_data}.bin",
            }
            summary = {
                **facts,
                "below_gzip": facts["val_bits_per_byte"] < facts["gzip_bits_per_byte"],
                "wall_s": round(sum(seconds.values()), 1),
                "step_s": seconds,
                "command": training.shown_command,
                "files": {name: str(path) for name, path in files.items()},
                "samples": samples,
            }
            write_json(summary_path, summary)
            return {}

        inputs = {"facts": text_sha256(json.dumps([facts, *prompts], sort_keys=True)), "run": str(run)}
        outputs = [picture, summary_path]
        self._step(self.run_stamps, "report", inputs, outputs, make, lambda _: f"{picture}   {summary_path}")
        return json.loads(summary_path.read_text(encoding="utf-8"))

    def training(self, vocab_size: int) -> tuple[Training, RunConfig]:
        """The job, and its resolved configuration; paths that the file says already are not overridden."""
        settings = self.settings
        plain = load_config(settings.config, settings.overrides, RANKS)
        paths = {
            "data.path": (plain.data.path, self.train_data),
            "data.valid_path": (plain.data.valid_path, self.held_out_data),
            "logging.directory": (plain.logging.directory, settings.run),
        }
        moved = [f"--{name}={ours}" for name, (theirs, ours) in paths.items() if theirs != str(ours)]
        overrides = (*settings.overrides, *moved)
        config = with_vocab_size(load_config(settings.config, overrides, RANKS), vocab_size)
        return Training(settings.config, overrides, settings.run, compile_plan(config).total_steps), config

    def set_other_run_aside(self, inputs: Mapping[str, str]) -> None:
        """A run of other text or another model must not be resumed; it is kept under another name."""
        run = self.settings.run
        started = self.run_stamps.read("started")
        if (run / "checkpoints").exists() and (started is None or started.inputs != inputs):
            aside = next(
                path for n in range(1, 10**6) if not (path := run.with_name(f"{run.name}-before-{n}")).exists()
            )
            run.rename(aside)
            self._note(f"{run} held a run of another text or model; it is now {aside}")
        self.run_stamps.write("started", Stamp(dict(inputs), {}, {}, 0.0))

    def _step(
        self,
        stamps: Stamps,
        step: str,
        inputs: Mapping[str, str],
        outputs: Sequence[Path],
        make: Callable[[], Facts],
        text: Callable[[Facts], str],
    ) -> Facts:
        """Do a step unless it is done, and print its line."""
        stamp, before = stamps.once(step, {**inputs, "version": VERSION}, outputs, make)
        # Of a training that went over several runs of this script only the last is timed here.
        self.seconds[step] = max(stamp.seconds, stamp.facts.get("train_s", 0.0))
        took = (
            "done before"
            if before
            else f"{stamp.seconds:.0f} s"
            if stamp.seconds < 60
            else duration_text(stamp.seconds)
        )
        line = f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step:<10} {text(stamp.facts)}"
        print(f"{line:<{WIDTH - 12}} {took:>11}", flush=True)
        return stamp.facts

    def _announce(self, step: str, text: str) -> None:
        print(f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step:<10} {text}", flush=True)

    def _note(self, text: str) -> None:
        print(f"{'':<17}{text}", flush=True)


def describe(config: RunConfig, steps: int) -> str:
    """The model and the schedule in a line."""
    model, warmup = config.model, config.curriculum
    text = f"{model.num_layers} layers x {model.hidden_size}, {count_text(parameters(model))} parameters"
    if warmup is None or warmup.total_curriculum_step is None:
        return f"{text}, length {model.seq_length}, {steps} steps"
    share = 100 * warmup.total_curriculum_step / steps
    lengths = f"{warmup.min_difficulty} -> {warmup.max_difficulty}"
    return f"{text}, SLW {lengths} over {share:.0f} % of {steps} steps"


def run_tool(name: str, flags: Sequence[object]) -> Facts:
    """Run one of tools/ and give what it printed.

    Raises:
        ConfigError: it refused its input (status 2); the message is the tool's own.
        CommandFailed: it failed.
    """
    script = ROOT / "tools" / f"{name}.py"
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, str(script), *map(str, flags)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 2:
        raise ConfigError(done.stderr.strip())
    if done.returncode:
        raise CommandFailed(f"tools/{name}.py ended with status {done.returncode}:\n{done.stderr.strip()}")
    return {"printed": done.stdout.strip()}


def sidecar_of(prefix: Path) -> Sidecar:
    """What preprocess_data.py wrote beside a dataset."""
    sidecar = read_sidecar(dataset_paths(prefix).sidecar)
    if sidecar is None:
        raise ConfigError(f"{prefix}.json is not what preprocess_data.py writes. Remove its folder and run again.")
    return sidecar


def vocabulary_of(sidecar: Sidecar) -> int:
    """Tokens of the tokenizer that made a dataset."""
    assert sidecar.tokenizer is not None, "preprocess_data.py names its tokenizer"
    return sidecar.tokenizer.vocab_size


def text_sha256(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
