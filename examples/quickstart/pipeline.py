"""The eight steps of the quickstart, and the line that each prints."""

from __future__ import annotations

import hashlib
import json
import shlex
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
from growing import Growing
from lines import announced_text, corpus_text, evaluated_text, grown_text, trained_text
from stamps import Facts, Stamp, Stamps, set_aside, write_json
from training import RANKS, ROOT, Training, train

from megatron_slw.checkpoint.format import MANIFEST
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config, to_json, with_vocab_size
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.layout import dataset_paths
from megatron_slw.data.sidecar import Sidecar, file_sha256, read_sidecar
from megatron_slw.report.curves import draw_run
from megatron_slw.slw.compile import compile_plan
from megatron_slw.train.metrics import FILE_NAME
from megatron_slw.train.units import count_text, duration_text

STEPS = ("corpus", "tokenizer", "dataset", "pretrain", "grow", "train on", "evaluate", "report")
VERSION = "2"  # of what the steps do: another one makes every step run again
WIDTH = 96
LEAST_PIECES, BYTES_PER_PIECE = 300, 100
"""A small text gets a small vocabulary."""
GROW_AT, GROW = 0.6, ("--depth", "2", "--rewarmup-steps", "20")


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
    grow_at: float = GROW_AT
    """The share of all steps that the small model gets."""
    grow: tuple[str, ...] = GROW
    """Flags of tools/grow_checkpoint.py."""


class Quickstart:
    """Runs the steps in order; each finds what the ones before it made by path."""

    def __init__(self, settings: Settings) -> None:
        data, run = settings.data, settings.run
        self.settings = settings
        self.train_text, self.held_out_text = data / "train.jsonl", data / "held_out.jsonl"
        self.tokenizer = data / "tokenizer.json"
        # preprocess_data.py appends the key and "document" to its --output-prefix.
        self.train_data, self.held_out_data = data / "train_text_document", data / "held_out_text_document"
        self.small_run, self.grown_run = run / "small", run / "grown"
        self.data_stamps, self.run_stamps = Stamps(data / "steps"), Stamps(run / "steps")
        self.seconds: dict[str, float] = {}

    def run(self) -> None:
        """Do what is left to do, and say what came out."""
        print(f"megatron_slw quickstart · {RANKS} CPU ranks · no GPU needed · about 6 minutes", flush=True)
        documents = self.prepare_corpus()
        self.train_tokenizer()
        self.prepare_dataset()
        small, before = self.pretrain()
        growing, growth = self.grow(small)
        grown, after = self.train_on(growing, growth, before["tokens"])
        evaluation = self.evaluate(grown.final_checkpoint)
        facts = {"corpus": documents, **growth, **figures.whole_run(before, after, growth), **evaluation}
        commands = [step.shown_command for step in (small, growing, grown)]
        print_closing(self.report(facts, commands, grown.final_checkpoint))

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
            partial(corpus_text, what=what),
        )
        return {"name": corpus.LIBRARY if path is None else str(path), **facts}

    def train_tokenizer(self) -> None:
        """Step 2: a byte-level BPE, on the training text alone."""
        size = min(self.settings.vocab_size, max(LEAST_PIECES, self.train_text.stat().st_size // BYTES_PER_PIECE))

        def make() -> Facts:
            flags = ["--input", self.train_text, "--output", self.tokenizer, "--vocab-size", size, "--allow-fewer"]
            run_tool("train_tokenizer", flags)
            return {"pieces": len(json.loads(self.tokenizer.read_text(encoding="utf-8"))["model"]["vocab"])}

        inputs = {"text": file_sha256(self.train_text), "size": str(size)}
        text = "byte-level BPE, {pieces:,} pieces"
        self._step(self.data_stamps, "tokenizer", inputs, [self.tokenizer], make, lambda facts: text.format(**facts))

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

    def pretrain(self) -> tuple[Training, Facts]:
        """Step 4: the small model, by the real job under the real launcher, stopped on the way and resumed."""
        train_sidecar = sidecar_of(self.train_data)
        training, config = self.training(vocabulary_of(train_sidecar))
        self.require_windows(config.model.seq_length)
        inputs = {
            "config": text_sha256(json.dumps(to_json(config), sort_keys=True)),
            "train": train_sidecar.bin_sha256,
            "held_out": sidecar_of(self.held_out_data).bin_sha256,
            "growth": shlex.join([str(training.last_step), *self.settings.grow]),
        }
        self.set_other_run_aside(inputs)
        metrics = training.run / FILE_NAME

        def make() -> Facts:
            self._announce("pretrain", announced_text(config, training))
            self._note(training.shown_command)
            train(training, self._note, pause_at=training.last_step // 2)
            return figures.training_figures(metrics)

        outputs = [metrics, training.final_checkpoint / MANIFEST]
        return training, self._step(self.run_stamps, "pretrain", inputs, outputs, make, trained_text)

    def grow(self, small: Training) -> tuple[Growing, Facts]:
        """Step 5: the same model, deeper and wider, with its whole training state."""
        growing = Growing(small.final_checkpoint, small.last_step, self.grown_run, self.settings.grow)
        if not growing.is_there:
            self.run_stamps.path("grow").unlink(missing_ok=True)
        inputs = {"model": file_sha256(small.final_checkpoint / MANIFEST), "flags": shlex.join(growing.flags)}

        def make() -> Facts:
            self._announce("grow", "a larger model with the same loss; moments, schedule and clock go on")
            return growing(self._note)

        return growing, self._step(self.run_stamps, "grow", inputs, [growing.config], make, grown_text)

    def train_on(self, growing: Growing, growth: Facts, tokens_before: int) -> tuple[Training, Facts]:
        """Step 6: the rest of the plan, with the grown model."""
        total = growth["total_steps"]
        training = Training(growing.config, (), growing.run, total, begins_at=growing.step)
        metrics = training.run / FILE_NAME
        outputs = [metrics, training.final_checkpoint / MANIFEST]
        inputs = {"config": file_sha256(growing.config), "model": file_sha256(growing.load / MANIFEST)}

        def make() -> Facts:
            what = f"{growth['large']}, {count_text(growth['parameters'])} parameters"
            self._announce("train on", f"{what}, steps {growing.step + 1:,} to {total:,}")
            self._note(training.shown_command)
            train(training, self._note)
            return figures.training_figures(metrics, tokens_before)

        return training, self._step(self.run_stamps, "train on", inputs, outputs, make, trained_text)

    def evaluate(self, checkpoint: Path) -> Facts:
        """Step 7: bits per byte of the held-out text."""
        texts = corpus.read_texts(self.held_out_text)
        return self._step(
            self.run_stamps,
            "evaluate",
            {"model": file_sha256(checkpoint / MANIFEST), "text": file_sha256(self.held_out_text)},
            [],
            lambda: figures.held_out_figures(checkpoint, self.held_out_data, texts),
            evaluated_text,
        )

    def report(self, facts: Facts, commands: Sequence[str], checkpoint: Path) -> dict[str, Any]:
        """Step 8: the picture, samples, and all figures in one file."""
        run = self.settings.run
        picture, summary_path = run / "report.png", run / "summary.json"
        prompts: Sequence[str] = figures.SAMPLE_PROMPTS
        if self.settings.corpus is not None:
            prompts = [figures.first_words(t) for t in corpus.read_texts(self.held_out_text)[:3]]

        def make() -> Facts:
            start = time.monotonic()
            draw_run([self.small_run, self.grown_run], picture)
            samples = figures.write_samples(checkpoint, self.train_data, prompts)
            seconds = {**self.seconds, "report": round(time.monotonic() - start, 1)}
            files = {
                "summary": summary_path,
                "report": picture,
                "checkpoint": checkpoint,
                "tokenizer": self.tokenizer,
                "dataset": f"{self.train_data}.bin",
            }
            summary = {
                **facts,
                "below_gzip": facts["val_bits_per_byte"] < facts["gzip_bits_per_byte"],
                "wall_s": round(sum(seconds.values()), 1),
                "step_s": seconds,
                "commands": list(commands),
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
        """The small model's job, and its resolved configuration; paths that the file says already are not overridden.

        Raises:
            ConfigError: no step would be left for one of the two models.
        """
        settings = self.settings
        plain = load_config(settings.config, settings.overrides, RANKS)
        paths = {
            "data.path": (plain.data.path, self.train_data),
            "data.valid_path": (plain.data.valid_path, self.held_out_data),
            "logging.directory": (plain.logging.directory, self.small_run),
        }
        moved = [f"--{name}={ours}" for name, (theirs, ours) in paths.items() if theirs != str(ours)]
        overrides = (*settings.overrides, *moved)
        config = with_vocab_size(load_config(settings.config, overrides, RANKS), vocab_size)
        total = compile_plan(config).total_steps
        grow_at = round(settings.grow_at * total)
        if not 0 < grow_at < total:
            raise ConfigError(
                f"--grow-at {settings.grow_at:g} of {total} steps is step {grow_at}: it must be after the first and "
                "before the last."
            )
        return Training(settings.config, overrides, self.small_run, total, stop_after=grow_at), config

    def require_windows(self, length: int) -> None:
        """Refuse texts of less than one window each.

        Raises:
            ConfigError: with how long the text is.
        """
        for what, prefix in (("training", self.train_data), ("held-out", self.held_out_data)):
            tokens = sidecar_of(prefix).tokens
            if tokens <= length:
                raise ConfigError(
                    f"{self.settings.corpus or corpus.LIBRARY} is too short: its {what} text has {tokens:,} tokens, "
                    f"and a window of the model needs {length + 1:,}. Use more text."
                )

    def set_other_run_aside(self, inputs: Mapping[str, str]) -> None:
        """A run of other text or another model must not be resumed; it is kept under another name."""
        run = self.settings.run
        started = self.run_stamps.read("started")
        trained = any((run / name).exists() for name in ("small", "grown", "checkpoints"))
        if trained and (started is None or started.inputs != inputs):
            aside = set_aside(run)
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
