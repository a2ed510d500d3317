"""One training step and one evaluation on DeepSpeed, the same interface with and without pipelining.

`Engine` owns the weights and the optimizer. A step gets this rank's blocks and its learning rate and gives the mean
loss over the global batch. Everything that a step needs beside the weights (length, rate, random numbers) is derived
from the step's number, so nothing here is a counter that could be restored wrongly.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.config.schema import RunConfig
from megatron_slw.growth.operators.multiplier import Multiplier
from megatron_slw.model.forward import Forward, forward_of
from megatron_slw.model.gpt import GPT
from megatron_slw.model.init import name_seed
from megatron_slw.model.pipeline import build_pipeline
from megatron_slw.parallel.groups import Groups, ModelParallelUnit
from megatron_slw.parallel.sharding import Shard, sharded_parameters
from megatron_slw.slw.batching import MicroBatching, micro_batching
from megatron_slw.slw.plan import BatchStep
from megatron_slw.train.agreement import gathered, mean_loss, replica_of
from megatron_slw.train.optim import LR_MULTIPLIER, NO_MULTIPLIERS, build_optimizer, clip_by_global_norm

if TYPE_CHECKING:
    from megatron_slw.data.loader import Blocks

MicroBatch = tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]
"""(token ids, and document ids where they are tracked), (labels, their weights); each (B, T)."""


Judge = Callable[[float, float | None], str | None]
"""(loss, gradient norm or None while it is not known) -> why the step must not be trained; None if it may. Both are
finite and the same on every rank, so a pure function decides alike on all of them."""


class StepRefused(RuntimeError):
    """A step was not trained: weights, moments and the optimizer's step are those before it, and training can go on."""

    def __init__(self, sentence: str, reason: str, loss: float, grad_norm: float) -> None:
        super().__init__(sentence)
        self.reason, self.loss, self.grad_norm = reason, loss, grad_norm
        """What was wrong in a few words; the values, NaN where they are not known."""


class NonFiniteError(StepRefused):
    """The loss or the gradient norm is NaN or infinite."""


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    """Mean negative log-likelihood over the labels of the global batch, in nats."""
    grad_norm: float
    """2-norm of the gradients before clipping."""
    applied: bool
    """False where fp16's loss scaler skipped the update."""


def _never(loss: float, grad_norm: float | None) -> str | None:
    """Finite values are trained on."""
    return None


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`: the user's own keys, and the derived ones that it insists on.

    fp32 without ZeRO is clipped by `clip_by_global_norm` (see there), so DeepSpeed's own clipping is off.
    """
    ours_clips = config.zero_stage == 0
    ds = dict(config.deepspeed) | {
        "train_batch_size": config.train_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": 0.0 if ours_clips else config.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    ds.setdefault("steps_per_print", 10**9)
    if config.parallel.sequence_parallel:
        # DeepSpeed takes the activations of tensor-parallel ranks for copies, sends a part of each and glues the parts.
        # Under sequence parallelism they are different parts of the sequence already.
        ds["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False} | ds.get("pipeline", {})
    if config.precision == "bf16":  # bf16 sums of many micro-batches lose their small addends
        ds.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    return ds


class Engine:
    """A GPT, its optimizer and DeepSpeed's engine around both.

    Args:
        config: with model.vocab_size filled in.
        groups: from `build_groups`.
        initial: gives the whole logical fp32 tensor, or this rank's block of it, for a Shard. Weights are filled
            before DeepSpeed casts and partitions them, so that fp32 masters and low-precision copies agree.
        multipliers: of the optimizer's rates, by family of tensors, that a growth left behind.
    """

    def __init__(
        self,
        config: RunConfig,
        groups: Groups,
        initial: Callable[[Shard], Tensor],
        multipliers: Mapping[str, Multiplier] = NO_MULTIPLIERS,
    ) -> None:
        self.config, self.groups = config, groups
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):  # PipelineModule prints its partition on every start
            module = build_pipeline(config, groups) if groups.pp_size > 1 else GPT(config, groups)
        module.to(groups.device)
        with torch.no_grad():
            for shard, param in sharded_parameters(module):
                value = initial(shard)
                param.copy_(value if value.shape == param.shape else shard.slice(value))
        self.torch_optimizer = build_optimizer(config.optimizer, module, multipliers)
        self._judge: Judge = _never
        self._refusal: StepRefused | None = None
        self._loss = self._grad_norm = math.nan
        self._norm_is_judged = False
        self.torch_optimizer.register_step_pre_hook(self._judge_before_update)
        with contextlib.redirect_stdout(io.StringIO()):
            self.ds, self.optimizer, _, _ = deepspeed.initialize(
                model=module,
                optimizer=self.torch_optimizer,
                config=deepspeed_config(config),
                mpu=ModelParallelUnit(groups) if groups.pp_size == 1 else None,
            )
        self._current: BatchStep | None = None
        self._local_loss = torch.zeros((), device=groups.device)
        self._shape: tuple[int, MicroBatching] | None = None
        self._take_model_step = self.ds._take_model_step
        self.ds._take_model_step = self._guarded_model_step

    def train_step(
        self, blocks: Blocks, step: BatchStep, learning_rate: float, judge: Judge | None = None
    ) -> StepResult:
        """Forward, backward and update on this data-parallel rank's rows of the step.

        Raises:
            NonFiniteError, StepRefused: nothing was updated, on every rank alike. `judge` says the latter.
        """
        self._begin(step, judge or _never)
        scaler = vars(self.optimizer.loss_scaler).copy() if self.config.precision == "fp16" else {}
        self._seed(step.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(LR_MULTIPLIER, 1.0)
        labels = step.tokens if blocks.loss_mask_BT is None else self._count_labels(blocks.loss_mask_BT)
        batching = micro_batching(self.config, step.seq_len, step.rows)
        micros = list(self._micro_batches(blocks, batching.rows, labels))
        self._set_shapes(step.seq_len, step.rows, batching)
        self.ds.micro_steps = 0  # the plain engine finds the last micro-batch by counting through the whole run
        if self.groups.pp_size > 1:
            loss = float(self.ds.train_batch(iter(micros)))
        else:
            self._accumulate(micros)
            loss = self._loss
        applied = bool(self.ds.was_step_applied()) if self.config.zero_stage else True
        if not applied and self.config.precision != "fp16" and self._refusal is None:
            self._refuse(NonFiniteError, "the gradient norm is not finite", math.inf)
        if self._refusal is not None:
            if scaler:  # fp16's scale must not tell of a step that was not trained
                vars(self.optimizer.loss_scaler).update(scaler)
            raise self._refusal
        norm = self._grad_norm if self.config.zero_stage == 0 else float(self.ds.get_global_grad_norm() or 0.0)
        return StepResult(loss, norm, applied)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Blocks], count: int, labels: int) -> float:
        """Mean loss over `labels` labels at the batches' own length, dropout off.

        Args:
            batches: this rank's micro-batches; rows that only fill one up have a zero mask.
            count: how many they are, the same on every rank.
            labels: real labels over all ranks and batches.
        """
        micros = (
            micro
            for block in batches
            for micro in self._micro_batches(block, len(block.tokens_BT), labels, parts=count)
        )
        self.ds.module.eval()
        if self.groups.pp_size > 1:
            self._shape = None  # evaluation has its own shape; training resets again on its way back
            self.ds.reset_activation_shape()
            total = self.ds.eval_batch(micros, num_micro_batches=count).float()
            self.ds.reset_activation_shape()
        else:
            total = torch.stack([self.ds(*inputs, targets=targets) for inputs, targets in micros]).mean()
            dist.all_reduce(total, group=self.groups.dp_group)
            total /= self.groups.dp_size
        self.ds.module.train()
        return float(total)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Forward]:
        """The model's forward pass at any shape, dropout off, until the context is left; collective over a replica."""
        self.ds.module.eval()
        try:
            pipelined = self.groups.pp_size > 1
            yield forward_of(self.ds.module if pipelined else self.ds, self.config, self.groups)
        finally:
            self.ds.module.train()

    def _accumulate(self, micros: list[MicroBatch]) -> None:
        self.ds.module.train()
        losses = []
        for inputs, targets in micros:
            loss = self.ds(*inputs, targets=targets)
            losses.append(loss.detach())
            self._local_loss = torch.stack(losses).mean()
            self.ds.backward(loss)
            self.ds.step()

    def _micro_batches(self, blocks: Blocks, rows: int, labels: int, parts: int | None = None) -> Iterator[MicroBatch]:
        """Cut this rank's rows into micro-batches with label weights; see `WeightedLoss` for the weights."""
        count = parts or len(blocks.tokens_BT) // rows
        weight = count * self.groups.dp_size / labels
        for first in range(0, len(blocks.tokens_BT), rows):
            inputs = self._inputs(blocks, first, rows)
            targets = self._to_device(blocks.labels_BT[first : first + rows])
            weights = torch.full(targets.shape, weight, device=self.groups.device)
            if blocks.loss_mask_BT is not None:
                weights *= torch.from_numpy(blocks.loss_mask_BT[first : first + rows]).to(self.groups.device)
            yield inputs, (targets, weights)

    def _inputs(self, blocks: Blocks, first: int, rows: int) -> tuple[Tensor, ...]:
        tokens = self._to_device(blocks.tokens_BT[first : first + rows])
        if not self.config.data.track_documents:
            return (tokens,)
        if blocks.starts_BT is None:
            raise ValueError("data.reset_position_ids or reset_attention_mask is set, but the blocks have no starts_BT")
        return tokens, self._to_device(blocks.starts_BT[first : first + rows].cumsum(axis=1))

    def _count_labels(self, mask_BT: np.ndarray) -> int:
        count = torch.tensor(int(mask_BT.sum()), device=self.groups.device)
        dist.all_reduce(count, group=self.groups.dp_group)
        return max(1, int(count))

    def _to_device(self, ids: np.ndarray) -> Tensor:
        # uint16 travels as int32: half of int64's bytes over PCIe, and torch indexes no uint16 tensors
        return torch.from_numpy(ids.astype(np.int32)).to(self.groups.device).long()

    def _begin(self, step: BatchStep, judge: Judge) -> None:
        self._current, self._judge, self._refusal, self._norm_is_judged = step, judge, None, False

    def _seed(self, step: int) -> None:
        # Alike on the ranks of a tensor-parallel group: replicated activations need one dropout mask.
        place = f"{step}/{self.groups.dp_rank}/{self.groups.pp_rank}"
        torch.manual_seed(name_seed(self.config.training.seed, place))

    def _set_shapes(self, seq_len: int, rows: int, batching: MicroBatching) -> None:
        """Tell DeepSpeed of another number of micro-batches, and make the pipeline forget its buffers' shape.

        Without that a longer *or* shorter step aborts the ranks.
        """
        if (seq_len, batching) == self._shape:
            return
        self.ds.set_train_micro_batch_size(batching.rows)
        self.ds.set_train_batch_size(rows)
        if self.groups.pp_size > 1:
            self.ds.micro_batch_size = batching.rows
            self.ds.reset_activation_shape()
        self._shape = (seq_len, batching)

    def _guarded_model_step(self, lr_kwargs: Any) -> None:
        """Look at the loss of every rank, then let DeepSpeed go through its step.

        It does so even where the loss is refused, for then it also frees what a step frees; `_judge_before_update`
        keeps it from updating anything.
        """
        groups = self.groups
        if groups.pp_size > 1:
            last = groups.pp_rank == groups.pp_size - 1
            micros = self.ds.gradient_accumulation_steps()  # the pipeline sums what the plain engine averages
            self._local_loss = self.ds.total_loss.detach() / micros if last else torch.zeros((), device=groups.device)
        losses = gathered(self._local_loss.float(), groups)
        self._loss = mean_loss(losses, groups)
        bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        if bad and self.config.precision != "fp16":
            who = replica_of(bad[0], groups)
            self._refuse(NonFiniteError, f"the loss is not finite on rank {bad[0]}", math.nan, who)
        elif not bad and (reason := self._judge(self._loss, None)) is not None:
            self._refuse(StepRefused, reason, math.nan)
        self._take_model_step(lr_kwargs)

    def _judge_before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The last moment before anything moves, in DeepSpeed's every optimizer: without gradients nothing does.

        ZeRO steps one parameter group after the other; the first call decides for all.
        """
        if not self._norm_is_judged:
            self._norm_is_judged = True
            ours = self.config.zero_stage == 0
            clipping = self.config.gradient_clipping
            norm = clip_by_global_norm(self.ds.module, clipping, self.groups) if ours else self._deepspeed_norm()
            self._grad_norm = norm
            if self._refusal is not None:
                self._refusal.grad_norm = norm
            elif not math.isfinite(norm):
                self._refuse(NonFiniteError, "the gradient norm is not finite", norm)
            elif math.isfinite(self._loss) and (reason := self._judge(self._loss, norm)) is not None:
                self._refuse(StepRefused, reason, norm)
        if self._refusal is not None:
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad = None

    def _deepspeed_norm(self) -> float:
        norm = float(self.optimizer._global_grad_norm)
        return norm if norm >= 0.0 else math.inf  # its helpers write -1 for what is not finite

    def _refuse(self, kind: type[StepRefused], reason: str, norm: float, replica: int | None = None) -> None:
        self._refusal = kind(self._describe(reason, replica), reason, self._loss, norm)

    def _describe(self, what: str, replica: int | None = None) -> str:
        """The sentence for a step that was refused; a summed gradient no longer tells which replica spoilt it."""
        step = self._current
        if step is None:
            raise RuntimeError("no step has begun")
        share = step.rows if replica is None else step.rows // self.groups.dp_size
        first = step.samples_before + (replica or 0) * share
        who = "" if replica is None else f"data-parallel rank {replica}, "
        return (
            f"step {step.step + 1}: {what} ({who}samples {first} to {first + share - 1}, length {step.seq_len}). The "
            "weights are those before the step; lower optimizer.params.lr, or look at the data."
        )
