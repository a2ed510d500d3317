"""Text files to token datasets, on any number of processes and always to the same bytes.

The parent reads the files in pieces, the workers parse and encode them, and the parent writes what comes
back in the order in which it was read. No more than a few pieces for each worker are under way at a time, so
memory does not grow with the corpus. Every few seconds what is written is made durable and the place in the
input saved, so that a run that was killed goes on there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import asdict, dataclass, field

from megatron_slw import __version__
from megatron_slw.config.errors import ConfigError, listing
from megatron_slw.data.corpus import PIECE_BYTES, TEXT_ENDINGS, check_inputs, read_pieces
from megatron_slw.data.encode import ON_ERROR, EncodedPiece, EncodeSettings
from megatron_slw.data.inputs import describe_sources, expand_inputs, inputs_state
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.resume import DatasetState, RunState, load_state, save_state, state_path
from megatron_slw.data.shuffle import copy_shuffled
from megatron_slw.data.sidecar import Sidecar
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer
from megatron_slw.data.workers import Crew, WorkerDiedError, crew, encoded_pieces
from megatron_slw.data.writer import IndexedDatasetWriter, can_go_on

_COMMIT_SECONDS = 2.0
_NOTES = 20


@dataclass(frozen=True)
class PreprocessSettings:
    """What to read, how to encode it and where to write it."""

    inputs: tuple[str, ...]
    """Files, folders, patterns or "-", see `inputs.expand_inputs`."""
    output_prefix: str
    tokenizer: TokenizerSpec
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    workers: int = 1
    on_error: str = "fail"
    split_on_blank_lines: bool = False
    """Text files are documents with blank lines between them."""
    shuffle_seed: int | None = None
    """Order of the documents in the dataset; None is that of the input."""

    @property
    def encoding(self) -> EncodeSettings:
        """The part that workers need."""
        return EncodeSettings(self.tokenizer, self.json_keys, self.append_eod, self.on_error)

    def prefix(self, key: str) -> str:
        """The dataset of a key."""
        return f"{self.output_prefix}_{key}_document"


@dataclass
class Counts:
    """What was done so far; `report` callbacks get it after every piece."""

    total_bytes: int
    """Size of the input files; 0 where standard input is among them."""
    read_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    start: float = field(default_factory=time.monotonic)
    earlier_bytes: int = 0
    """Read by a run before this one, which it goes on from."""
    earlier_tokens: int = 0


def preprocess(
    settings: PreprocessSettings,
    report: Callable[[Counts], None] = lambda counts: None,
    say: Callable[[str], None] = lambda line: None,
    executor: Executor | None = None,
) -> dict[str, Sidecar]:
    """Write one dataset for each JSON key, at OUTPUT_PREFIX_KEY_document; return what their sidecars say.

    Empty documents are left out and counted. Until all is done, older datasets of the same name stay as they were.
    A run that was killed, or stopped by anything but its input, leaves what it wrote under temporary names, and the
    next run with equal settings and files goes on there; `workers` may differ.

    Args:
        settings: the command.
        report: called after every piece.
        say: called with each line for the user.
        executor: where pieces are encoded, with `settings.workers` workers, instead of a pool of this machine.

    Raises:
        ConfigError: a setting, tokenizer or document that cannot be used; documents by file and line.
    """
    paths = expand_inputs(settings.inputs)
    size = _check(settings, paths)
    with crew(settings.tokenizer, settings.workers, size, executor) as encoders:
        tokenizer = load_tokenizer(settings.tokenizer)
        if settings.append_eod and tokenizer.info.eod_id is None:
            raise ConfigError(f"--append-eod is set, but {tokenizer.info.name} has no end-of-document token.")
        run = _Run(settings, paths, size, tokenizer, say)
        try:
            run.encode(report, encoders)
            if not any(dataset.documents for dataset in run.state.datasets.values()):
                raise ConfigError(f"{', '.join(settings.inputs)}: there is no text in --input.")
            return run.publish()
        except WorkerDiedError:
            run.leave()
            raise
        except ConfigError:
            run.throw_away()
            raise
        except BaseException:
            run.leave()
            raise


def resumable(settings: PreprocessSettings) -> bool:
    """Whether an unfinished run of these settings left something to go on from."""
    return state_path(settings.prefix(settings.json_keys[0])).exists()


class _Run:
    """The writers of a run and where it is."""

    def __init__(
        self,
        settings: PreprocessSettings,
        paths: tuple[str, ...],
        size: int,
        tokenizer: Tokenizer,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.paths, self.tokenizer, self._say = settings, paths, tokenizer, say
        self.counts = Counts(size)
        self._dtype = dtype_for(tokenizer.info.vocab_size)
        self._state_path = state_path(settings.prefix(settings.json_keys[0]))
        self._identity = _identity(settings, paths, tokenizer)
        state = self._earlier_state()
        self.state = state or RunState({key: DatasetState() for key in settings.json_keys})
        self._noted = 0
        self._writers: dict[str, IndexedDatasetWriter] = {}
        try:
            for key, dataset in self.state.datasets.items():
                going_on = dataset.committed if state else None
                self._writers[key] = IndexedDatasetWriter(settings.prefix(key), self._dtype, going_on)
        except BaseException:
            self._close()
            raise
        if state is None:
            self._state_path.unlink(missing_ok=True)

    def encode(self, report: Callable[[Counts], None], encoders: Crew) -> None:
        """Read, encode and write what is left."""
        settings = self.settings
        pieces = read_pieces(
            self.paths, PIECE_BYTES, self.state.position, settings.json_keys, settings.split_on_blank_lines
        )
        results = encoded_pieces(settings.encoding, self.tokenizer, pieces, encoders)
        committed = time.monotonic()
        with closing(results):
            for result in results:
                self._write(result)
                report(self.counts)
                if self._identity is not None and time.monotonic() - committed >= _COMMIT_SECONDS:
                    self._commit()
                    committed = time.monotonic()
        if self._noted > _NOTES:
            self._say(f"{self._noted - _NOTES:,} more documents were not as they should be.")

    def publish(self) -> dict[str, Sidecar]:
        """Put the finished datasets in place."""
        if self._identity is not None:
            self._commit()
        sidecars = {key: self._publish(key, writer) for key, writer in self._writers.items()}
        self._state_path.unlink(missing_ok=True)
        for writer in self._writers.values():
            writer.clean_up()
        return sidecars

    def leave(self) -> None:
        """Stop, and leave to the next run what this one has done."""
        if self._state_path.exists():
            self._close()
        else:
            self.throw_away()

    def throw_away(self) -> None:
        """Stop, and leave nothing."""
        self._state_path.unlink(missing_ok=True)
        for writer in self._writers.values():
            writer.abort()

    def _publish(self, key: str, writer: IndexedDatasetWriter) -> Sidecar:
        dataset, seed = self.state.datasets[key], self.settings.shuffle_seed
        facts = Sidecar(
            self.tokenizer.info,
            0,
            dataset.empty,
            0,
            dataset.text_bytes,
            "",
            "",
            dict(sorted(self.state.skipped.items())),
            self.state.replaced,
            seed,
            describe_sources(self.paths),
        )
        if seed is None:
            return writer.publish(facts)
        self._say(f"shuffling {writer.documents:,} documents.")
        with IndexedDatasetWriter(self.settings.prefix(key), self._dtype, temporary=".shuffled.partial") as shuffled:
            copy_shuffled(writer, shuffled, seed)
            return shuffled.publish(facts)

    def _write(self, result: EncodedPiece) -> None:
        if result.fault is not None:
            raise ConfigError(f"{result.fault} With --on-error skip or replace it would not end the run.")
        for note in result.notes[: max(_NOTES - self._noted, 0)]:
            self._say(note)
        self._noted += sum(result.skipped.values()) + result.replaced
        for key, part in zip(self.settings.json_keys, result.keys, strict=True):
            self._writers[key].add_documents(part.tokens, part.lengths)
            dataset = self.state.datasets[key]
            dataset.documents += len(part.lengths)
            dataset.tokens += len(part.tokens)
            dataset.text_bytes += part.text_bytes
            dataset.empty += part.empty
            self.counts.documents += len(part.lengths)
            self.counts.tokens += len(part.tokens)
        for kind, number in result.skipped.items():
            self.state.skipped[kind] = self.state.skipped.get(kind, 0) + number
        self.state.replaced += result.replaced
        self.state.position, self.state.read = result.end, result.read
        self.counts.read_bytes = result.read

    def _commit(self) -> None:
        for writer in self._writers.values():
            writer.commit()
        save_state(self._state_path, self._identity or {}, self.state)

    def _earlier_state(self) -> RunState | None:
        """What to go on from; says so, or why not."""
        state, reason = load_state(self._state_path, self._identity or {"the inputs": "standard input"})
        if state is not None:
            for key, dataset in state.datasets.items():
                if not can_go_on(self.settings.prefix(key), self._dtype, dataset.committed):
                    state, reason = None, f"temporary files of {self.settings.prefix(key)} are missing"
                    break
        if state is None:
            if reason:
                self._say(f"starting over instead of going on with an unfinished run: {reason}.")
            return None
        documents = sum(dataset.documents for dataset in state.datasets.values())
        tokens = sum(dataset.tokens for dataset in state.datasets.values())
        self._say(f"going on after {documents:,} documents ({state.read / 1e6:.1f} MB) of an unfinished run.")
        self.counts.documents, self.counts.tokens = documents, tokens
        self.counts.read_bytes = self.counts.earlier_bytes = state.read
        self.counts.earlier_tokens = tokens
        return state

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.keep()


def _identity(settings: PreprocessSettings, paths: tuple[str, ...], tokenizer: Tokenizer) -> dict[str, str] | None:
    """What must be equal for a run to go on where another was; None where nothing can tell."""
    inputs = inputs_state(paths)
    if inputs is None:
        return None
    flags = (settings.json_keys, settings.append_eod, settings.on_error, settings.split_on_blank_lines)
    return {
        "the inputs": inputs,
        "the tokenizer": json.dumps(asdict(tokenizer.info)),
        "the flags": json.dumps([*flags, settings.shuffle_seed]),
        "the program": f"{__version__} {PIECE_BYTES}",
    }


def _check(settings: PreprocessSettings, paths: tuple[str, ...]) -> int:
    """Refuse settings that cannot work; return the bytes to read, 0 where they cannot be known."""
    if settings.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {settings.workers}.")
    if settings.on_error not in ON_ERROR:
        raise ConfigError(f"--on-error must be {listing(ON_ERROR)}, not {settings.on_error}.")
    if settings.shuffle_seed is not None and settings.shuffle_seed < 0:
        raise ConfigError(f"--shuffle-seed must be at least 0, not {settings.shuffle_seed}.")
    if len(set(settings.json_keys)) != len(settings.json_keys):
        raise ConfigError(f"--json-keys has one key twice: {' '.join(settings.json_keys)}.")
    size = check_inputs(paths)
    for path in paths:
        if path.endswith(TEXT_ENDINGS) and len(settings.json_keys) > 1:
            raise ConfigError(f"{path} is one text, but --json-keys has {len(settings.json_keys)} keys.")
    return 0 if "-" in paths else size
