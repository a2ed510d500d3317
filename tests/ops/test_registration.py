"""The operators as the dispatcher, autograd and torch.compile see them."""

from __future__ import annotations

import hashlib
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_slw.ops import library
from megatron_slw.ops.choice import INTERFACE
from megatron_slw.ops.table import table
from tests.ops.cases import CASES, SEED, inputs, labels_for, run, seen_by_document, some_seen

OPS = torch.ops.megatron_slw


def x(*shape: int, grad: bool = True) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(grad)


def samples() -> Iterator[tuple[str, tuple]]:
    """Arguments for each operator; the backward ones have no derivative of their own."""
    yield "causal_softmax", (x(2, 3, 9, 9), 0.5, None)
    yield "causal_softmax", (x(2, 3, 9, 9), 0.5, seen_by_document(2, 9))
    probabilities = x(2, 3, 9, 9, grad=False).softmax(-1).tril()
    yield "causal_softmax_backward", (x(2, 3, 9, 9, grad=False), probabilities, 0.5, None)
    yield "masked_softmax", (x(2, 3, 9, 9), some_seen(2, 9), 0.5)
    yield "masked_softmax_backward", (x(2, 3, 9, 9, grad=False), probabilities, 0.5)
    yield "layer_norm", (x(4, 10), x(10), x(10), 1e-5)
    moments = x(4, grad=False), x(4, grad=False).abs()
    weights = x(10, grad=False)
    yield "layer_norm_backward", (x(4, 10, grad=False), x(4, 10, grad=False), *moments, weights)
    yield "add_layer_norm", (x(4, 10), x(4, 10), x(10), x(10), 1e-5)
    for grad_total in (None, x(4, 10, grad=False)):
        arguments = (x(4, 10, grad=False), grad_total, x(4, 10, grad=False), *moments, weights)
        yield "add_layer_norm_backward", arguments
    for tanh in (True, False):
        yield "bias_gelu", (x(4, 10), x(10), tanh)
        yield "bias_gelu_backward", (x(4, 10, grad=False), x(4, 10, grad=False), weights, tanh)
    for bias in (None, x(10)):
        yield "bias_dropout_add", (x(4, 10), bias, x(4, 10), SEED, 0.3)
        detached = None if bias is None else bias.detach()
        yield "bias_dropout_add_backward", (x(4, 10, grad=False), detached, SEED, 0.3)
    yield "cross_entropy", (x(6, 10), labels_for(2, 10), 10)
    yield "cross_entropy", (x(6, 12), labels_for(2, 10), 10)
    yield "cross_entropy_statistics", (x(6, 12, grad=False), labels_for(2, 10), 3, 7)
    logits = x(6, 12, grad=False), labels_for(2, 10)
    arguments = (x(6, grad=False), *logits, x(6, grad=False), x(6, grad=False).abs(), 3, 7)
    yield "cross_entropy_backward", arguments
    yield "linear_cross_entropy", (x(6, 4), x(10, 4), labels_for(2, 10), 10)
    yield "linear_cross_entropy", (x(6, 4), x(12, 4), labels_for(2, 10), 10)
    yield "weighted_linear_cross_entropy", (x(6, 4), x(12, 4), labels_for(2, 10), x(6, grad=False), 10)
    head = x(6, 4, grad=False), x(10, 4, grad=False), labels_for(2, 10)
    yield "linear_cross_entropy_statistics", (*head, 3, 10)
    yield "linear_cross_entropy_backward", (x(6, grad=False), *head, x(6, grad=False), x(6, grad=False).abs(), 3, 10)


SAMPLES = list(samples())


@pytest.mark.parametrize("number", range(len(SAMPLES)), ids=[f"{name}-{i}" for i, (name, _) in enumerate(SAMPLES)])
def test_opcheck(number: int) -> None:
    name, arguments = SAMPLES[number]
    torch.library.opcheck(getattr(OPS, name).default, arguments)


def test_opcheck_covers_every_operator() -> None:
    assert {name for name, _ in SAMPLES} == set(library.OPERATORS)


@pytest.mark.parametrize("number", range(len(SAMPLES)), ids=[f"{name}-{i}" for i, (name, _) in enumerate(SAMPLES)])
def test_plain_implementation_gives_the_same(number: int) -> None:
    """Whatever serves the operator, it agrees with the plain one in values, shapes, strides and types."""
    name, arguments = SAMPLES[number]
    with torch.no_grad():
        found, plain = getattr(OPS, name)(*arguments), library.OPERATORS[name](*arguments)
    pairs = zip(found, plain, strict=True) if isinstance(found, tuple) else [(found, plain)]
    for a, b in pairs:
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    case = CASES[name]
    rest = case.rest(2, 5)
    leaves = inputs(case, 2, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda *given: case.ours(*given, *rest), leaves)


@pytest.mark.parametrize("name", CASES)
def test_compiled_without_a_graph_break(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    for width in (9, 12, 17):  # the second width recompiles with sizes as symbols
        tensors, rest = inputs(case, 2, width, torch.float32), case.rest(2, width)
        for found, true in zip(run(compiled, tensors, rest), run(case.ours, tensors, rest), strict=True):
            torch.testing.assert_close(found, true)


def test_table_names_every_operator() -> None:
    result = subprocess.run([sys.executable, "-m", "megatron_slw.ops"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == table()
    assert {line.split()[0] for line in table().splitlines()[1:-1]} == set(library.OPERATORS)


SCHEMAS = (2, "8776560cdfb7dbfe")
"""The interface number, and the SHA-256 of all operators' declarations that it stands for."""


def test_changed_arguments_need_a_library_of_another_name() -> None:
    declarations = sorted(str(getattr(OPS, name).default._schema) for name in library.OPERATORS)
    digest = hashlib.sha256("\n".join(declarations).encode()).hexdigest()[:16]
    said = "declarations changed: raise INTERFACE in ops/choice.py and csrc/build.py, then write both here"
    assert (INTERFACE, digest) == SCHEMAS, said
    build = runpy.run_path(str(Path(__file__).parents[2] / "csrc" / "build.py"))
    assert build["INTERFACE"] == INTERFACE, "csrc/build.py builds a library that is not loaded"
