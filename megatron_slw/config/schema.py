"""The typed configuration: what each setting is called, its type, its range and its default.

`load.py` reads the JSON into these classes, `rules.py` checks them against each other. They are frozen: what
the user wrote, what is checked, what is printed by `--dry-run` and what is saved with a checkpoint are the
same object. Nothing here imports torch, so `--dry-run` answers at once.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False, strict=True)]
NegativeFloat = Annotated[float, Field(lt=0.0, allow_inf_nan=False, strict=True)]
AtLeastTwo = Annotated[int, Field(ge=2, strict=True)]
Fraction01 = Annotated[float, Field(gt=0.0, le=1.0, strict=True)]
Switch = Annotated[bool, Field(strict=True)]  # pydantic would take "no" and 0 for a bool
Text = Annotated[str, Field(min_length=1)]

VOCAB_MULTIPLE = 128  # one fixed multiple, so that no shape depends on the layout


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Corpus(NamedTuple):
    """One of the datasets that are trained on."""

    prefix: str
    weight: Fraction
    """Its share of the samples, on the scale of the other weights."""


def _read_data_path(value: Any) -> str | tuple[float | str, ...]:
    """A prefix, or weights and prefixes in turn; pydantic's own union would name the fault of each form."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list | tuple):
        kind = "string_too_short" if isinstance(value, str) else "string_type"
        raise PydanticCustomError(kind, "not a prefix")
    weights, prefixes = value[::2], value[1::2]
    numbers = all(type(weight) in (int, float) and math.isfinite(weight) and weight > 0 for weight in weights)
    names = all(isinstance(prefix, str) and prefix for prefix in prefixes)
    if not value or len(value) % 2 or not numbers or not names:
        wanted = 'a list of weights above 0 and prefixes in turn, like [0.3, "a", 0.7, "b"]'
        raise PydanticCustomError("wanted", "not a blend", {"wanted": wanted})
    if len(set(prefixes)) < len(prefixes):
        raise PydanticCustomError("wanted", "not a blend", {"wanted": "a list with each prefix once"})
    return tuple(value)


def _write_data_path(value: str | tuple[float | str, ...]) -> Any:
    return value  # pydantic's own would look for the member of the union, and warn


DataPath = Annotated[str | tuple[float | str, ...], PlainValidator(_read_data_path), PlainSerializer(_write_data_path)]


class ModelConfig(Section):
    """A GPT-2 style pre-LayerNorm decoder."""

    num_layers: PositiveInt
    hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    seq_length: PositiveInt
    """Full length in tokens; the position table has this many rows."""
    vocab_size: PositiveInt | None = None
    """Token ids the model knows; None takes the dataset's."""
    ffn_hidden_size: PositiveInt | None = None
    """None is 4 x hidden_size."""
    hidden_dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    layernorm_epsilon: PositiveFloat = 1e-5
    init_method_std: PositiveFloat = 0.02
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    attention: Literal["auto", "sdpa", "fused_softmax"] = "auto"
    """PyTorch's attention, or scores, fused softmax and product; auto picks by a measured table."""

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to VOCAB_MULTIPLE."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not known yet: it comes from the dataset")
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class ParallelConfig(Section):
    """How ranks share the model; the data-parallel size is what is left of the world."""

    tensor: PositiveInt = 1
    pipeline: PositiveInt = 1
    sequence_parallel: Switch = False
    """Shard the activations between tensor-parallel regions along the sequence."""


class OpsConfig(Section):
    """Which implementation of the operators runs, and how the loss is computed."""

    backend: Literal["auto", "csrc", "torch", "apex"] = "auto"
    """auto is csrc where the kernels are built for the device, else torch."""
    cross_entropy: Literal["auto", "logits", "chunked"] = "auto"
    """The loss from all logits of a micro-batch, or from a chunk of rows at a time; auto picks by their size."""


class DataConfig(Section):
    """Which token datasets are read."""

    path: DataPath
    """Prefix of a .bin/.idx pair, as preprocess_data.py writes it; or weights and prefixes in turn, a blend."""
    valid_path: Text | None = None
    """Prefix of a separate validation set; None splits `path`."""
    split: Text = "949,50,1"
    """Train, validation, test shares of the documents of each corpus of `path`; without a valid_path."""
    allow_changed: Switch = False
    """Resume although data, blend, split, seed or length are not those the checkpoint was trained with."""
    reset_position_ids: Switch = False
    """Positions begin anew with each document of a row."""
    reset_attention_mask: Switch = False
    """Attention sees no other document of the row."""

    @property
    def track_documents(self) -> bool:
        """Whether the model must know where the documents of a row begin."""
        return self.reset_position_ids or self.reset_attention_mask

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The datasets of `path`. A weight is the decimal number that was written, exactly."""
        if isinstance(self.path, str):
            return (Corpus(self.path, Fraction(1)),)
        pairs = zip(self.path[::2], self.path[1::2], strict=True)
        return tuple(Corpus(str(prefix), Fraction(str(weight))) for weight, prefix in pairs)


class TrainingConfig(Section):
    """How long to train, and the learning rate on the way. The peak rate is optimizer.params.lr."""

    train_tokens: PositiveInt | None = None
    """Stop at the first step at which this many tokens were trained. This or one of the next three."""
    train_steps: PositiveInt | None = None
    train_samples: PositiveInt | None = None
    """Draw this many samples, train what a curriculum's mode brings back of them, and stop."""
    train_epochs: PositiveInt | None = None
    """The same with as many samples as this many passes over the training data have."""
    seed: NonNegativeInt = 1234
    min_lr: NonNegativeFloat = 0.0
    lr_warmup_steps: NonNegativeInt | None = None
    lr_warmup_tokens: NonNegativeInt | None = None
    lr_decay_style: Literal["cosine", "linear", "constant"] = "cosine"
    lr_decay_tokens: PositiveInt | None = None
    """Trained tokens at which min_lr is reached; None is the end of the run."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens up to which micro-batches are merged while sequences are short; None is a micro-batch at full length, 1
    merges nothing."""
    grow_when: Literal["auto"] | None = None
    """auto ends the run at its growth point, judged at each evaluation."""
    grow_slope: NegativeFloat = -0.0475
    """d log validation loss / d log compute from which on a larger model should take over; see docs/growth.md."""
    hang_timeout_s: NonNegativeFloat = 1800.0
    """Seconds without progress on some rank after which the job ends and says where each stood; 0 waits for ever."""
    activation_checkpointing: Switch = False
    """Recompute each transformer layer in the backward pass."""
    on_spike: Literal["stop", "skip", "rollback"] | None = None
    """What becomes of a step whose loss or gradient norm is not finite or stands out; None stops at the former and
    trains on the latter."""
    spike_sigmas: PositiveFloat = 6.0
    """Standard deviations above the mean of the last 128 steps from which on a value stands out."""
    spike_limit: PositiveInt = 10
    """Faults within 1,000 steps that are skipped or gone back from; one more stops the run."""
    rollback_steps: PositiveInt = 200
    """Steps that a rollback leaves out, half of them before the fault."""
    rerun: Switch = False
    """Repeat a refused step from the same state; go on if it was a passing fault."""


class TaskConfig(Section):
    """One task that a model is judged by."""

    task: Literal["wikitext", "lambada", "text"]
    data: Text
    """The file to score."""
    name: Text | None = None
    """What its figures are called; None is the task."""
    interval: NonNegativeInt | None = None
    """Steps between runs of it in training; 0 at the end only, None is evaluation.interval."""
    limit: PositiveInt | None = None
    """Only so many articles, examples or documents, the first of the file."""
    stride: PositiveInt | None = None
    """Labels that a window scores (wikitext, text); None is the full length, so that windows do not overlap."""
    detokenize: Switch = True
    """Undo WikiText's tokens first, as lm-evaluation-harness does (wikitext)."""
    json_key: Text | None = None
    """Key of the text in a .jsonl; None is page (wikitext) or text (text)."""

    @property
    def label(self) -> str:
        """What its figures are called."""
        return self.name or self.task


class EvaluationConfig(Section):
    """Validation and tasks during training, always at the full length."""

    interval: NonNegativeInt = 1000
    """Steps between evaluations; 0 never."""
    samples: PositiveInt = 512
    """Validation windows per evaluation (fewer where the set is smaller)."""
    tasks: tuple[TaskConfig, ...] = ()
    """What else the model is judged by on the way."""
    tokenizer_dir: Text | None = None
    """Folder of the tokenizer's file, for the tasks; None is beside the dataset."""


class CheckpointConfig(Section):
    """Where and how often the training state is saved."""

    directory: Text | None = None
    """None is <logging.directory>/checkpoints."""
    interval: NonNegativeInt = 1000
    """Steps between saves; 0 saves at the end only."""
    keep_last: PositiveInt = 3
    load: Text | None = None
    """A checkpoint directory to start from; None resumes the newest complete one of `directory`, if any."""
    asynchronous: Switch = False
    """Copy the state to host memory and write it from there while training goes on."""
    on_error: Literal["stop", "continue"] = "stop"
    """What a save that cannot be written does to the run; the last save always ends it."""


class WandbConfig(Section):
    """A run in Weights & Biases."""

    project: Text
    entity: Text | None = None
    """User or team; None is the user's default."""
    name: Text | None = None
    """What the run is called; None is the name of the run directory."""
    group: Text | None = None
    tags: tuple[Text, ...] | None = None
    mode: Literal["online", "offline"] = "online"
    """offline keeps the run in <logging.directory>/wandb, for `wandb sync`."""


class LoggingConfig(Section):
    """What a run leaves behind for people."""

    directory: Text
    """The run directory: metrics.jsonl, TensorBoard events, config.json, checkpoints/."""
    interval: PositiveInt = 1
    """Steps between lines on a log that is not a terminal; metrics.jsonl has every step."""
    tensorboard: Switch = True
    wandb: WandbConfig | None = None
    callback: Text | None = None
    """Import path module:factory of a logger of the user's own; see docs/metrics.md."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one device for MFU; None takes the built-in table, and no MFU where the device is not in it."""


class OptimizerConfig(Section):
    """DeepSpeed's `optimizer` block, reduced to what is built here with torch.optim."""

    type: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    lr: PositiveFloat
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    momentum: Probability = 0.0


class CurriculumConfig(Section):
    """One schedule, of lengths or of rows; fields and meaning are DeepSpeed's where it has them."""

    mode: Literal[
        "seqlen_truncate", "seqlen_reshape", "seqlen_replay", "seqlen_tailpack", "seqlen_revisit", "batch_size"
    ] = "seqlen_truncate"
    schedule_type: Literal["fixed_linear", "fixed_root", "fixed_discrete", "custom", "loss_adaptive", "mixed"]
    min_difficulty: PositiveInt
    max_difficulty: PositiveInt
    total_curriculum_step: PositiveInt | None = None
    """Steps of the warmup. This, total_curriculum_tokens or duration."""
    total_curriculum_tokens: PositiveInt | None = None
    """Tokens trained in the warmup."""
    duration: Fraction01 | None = None
    """The warmup's share of the run's steps."""
    difficulty_step: PositiveInt | None = None
    max_distinct_lengths: AtLeastTwo | None = None
    """Coarsens difficulty_step until there are no more lengths than this."""
    root_degree: PositiveInt | None = None
    difficulty: tuple[PositiveInt, ...] | None = None
    max_step: tuple[PositiveInt, ...] | None = None
    """The last step of each stage but the last. This, max_tokens or max_fraction."""
    max_tokens: tuple[PositiveInt, ...] | None = None
    """The tokens trained at the end of each stage."""
    max_fraction: tuple[Fraction01, ...] | None = None
    """The share of the run's steps at the end of each stage."""
    function: Text | None = None
    """Import path module:function, called as function(t, min_difficulty, max_difficulty) with the step t from 1 on."""
    patience: PositiveInt | None = None
    """Steps without a lower smoothed loss after which a loss_adaptive schedule lengthens."""
    min_improvement: Probability | None = None
    """Share of the lowest smoothed loss by which a lower one must fall to count."""
    smoothing: Probability | None = None
    """Weight of the past in the smoothed loss."""


class RunConfig(Section):
    """One run, resolved: every default filled, every number derived. Nobody writes it after validation."""

    model: ModelConfig
    parallel: ParallelConfig
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    ops: OpsConfig = OpsConfig()
    optimizer: OptimizerConfig
    curriculum: CurriculumConfig | None
    """The lengths; None for the full length throughout."""
    batch_warmup: CurriculumConfig | None = None
    """The rows of a step; None for train_batch_size throughout."""
    world_size: PositiveInt
    train_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    precision: Literal["fp32", "bf16", "fp16"]
    zero_stage: Literal[0, 1, 2, 3]
    gradient_clipping: NonNegativeFloat
    deepspeed: dict[str, Any]
    """The user's remaining DeepSpeed keys, passed on as they are."""

    @property
    def data_parallel_size(self) -> int:
        """Replicas of the model."""
        return self.world_size // (self.parallel.tensor * self.parallel.pipeline)
