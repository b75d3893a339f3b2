"""Constant indices that point beyond what they index are refused, where kernels would follow them into other memory."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.types import infer
from tests.models import model, random

MATRIX = "(float[2,8] x) => (float y) {{ c = MatMul(x, w) y = {} }}"
UNPOOL = "(float[N,1,4,4] x) => (float y) {{ y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i{}) }}"
LOOP = """Loop<body = b (int64 step, bool on, float[A,B] s) => (bool go, float[A,B] t) {{ go = {} t = Relu(s) }}>(i, on, c)"""
#: A graph, its indices, and the first that is wrong.
BEYOND = {
    "Gather": (MATRIX.format("Gather<axis=1>(c, i)"), [0, 8], 8),
    "Gather from the end": (MATRIX.format("Gather<axis=1>(c, i)"), [-9, 0], -9),
    "Gather of constants": (MATRIX.format("Gather(w, i)"), [2**62], 2**62),
    "GatherElements of constants": (MATRIX.format("GatherElements(w, i)"), [[2**62]], 2**62),
    "GatherND": (MATRIX.format("GatherND(c, i)"), [[1, 7], [2, 0]], 2),
    "ScatterND": (MATRIX.format("ScatterND(c, i, u)"), [[1, -9]], -9),
    "ScatterElements": (MATRIX.format("ScatterElements(c, i, q)"), [[5]], 5),
    "label of SoftmaxCrossEntropyLoss": (MATRIX.format("SoftmaxCrossEntropyLoss(c, i)"), [0, 8], 8),
    "label below 0": (MATRIX.format("SoftmaxCrossEntropyLoss<ignore_index=-2>(c, i)"), [-2, -1], -1),
    "label without a weight": (MATRIX.format("SoftmaxCrossEntropyLoss(c, i, u)"), [0, 1], 1),
    "label of NegativeLogLikelihoodLoss": (MATRIX.format("NegativeLogLikelihoodLoss(c, i)"), [0, 10**9], 10**9),
    "sample of RoiAlign": ("(float[N,2,8,8] x) => (float y) { y = RoiAlign(x, r, i) }", [1], 1),
    "place of MaxUnpool": (UNPOOL.format(""), [[[[16]]]], 16),
    "place of MaxUnpool below 0": (UNPOOL.format(""), [[[[-1]]]], -1),
    "place of MaxUnpool beyond the shape given": (UNPOOL.format(", shape"), [[[[25]]]], 25),
    "axis of Pad": (MATRIX.format("Pad(c, two, , i)"), [2], 2),
}
WITHIN = {
    "Gather": (MATRIX.format("Gather<axis=1>(c, i)"), [-8, 7]),
    "Gather from an unknown size": ("(float[N,M] x) => (float y) { y = Gather<axis=1>(x, i) }", [100]),
    "GatherND": (MATRIX.format("GatherND(c, i)"), [[1, 7], [-2, -8]]),
    "ignored label": (MATRIX.format("SoftmaxCrossEntropyLoss<ignore_index=-100>(c, i)"), [-100, 7]),
    "first sample of RoiAlign": ("(float[N,2,8,8] x) => (float y) { y = RoiAlign(x, r, i) }", [0]),
    "second of two samples of RoiAlign": ("(float[2,2,8,8] x) => (float y) { y = RoiAlign(x, r, i) }", [1]),
    "place of MaxUnpool": (UNPOOL.format(", shape"), [[[[24]]]]),
    "Loop of as many steps as there are": (MATRIX.format(LOOP.format("Not(on)")), 2**63 - 1),
    "Loop of a thousand steps": (MATRIX.format(LOOP.format("Identity(on)")), 1000),
}
OTHERS = {
    "w": random(8, 8),
    "u": random(1),
    "q": random(1, 1),
    "r": random(1, 4),
    "two": np.array([1, 1]),
    "shape": np.array([1, 1, 5, 5]),
    "on": np.array(True),
}


def read(body: str, indices: object) -> None:
    used = {name: array for name, array in OTHERS.items() if re.search(rf"\b{name}\b", body.split("{", 1)[1])}
    infer(io.load(model(body, opset=18, i=np.array(indices), **used)))


@pytest.mark.parametrize(("body", "indices", "wrong"), BEYOND.values(), ids=BEYOND)
def test_index_beyond_what_it_indexes_is_refused(body, indices, wrong):
    with pytest.raises(InputError, match=rf"holds the index {wrong}, (which is none of the \d+ that|below 0)"):
        read(body, indices)


@pytest.mark.parametrize(("body", "indices"), WITHIN.values(), ids=WITHIN)
def test_index_within_what_it_indexes_passes(body, indices):
    read(body, indices)


def test_loop_that_only_a_huge_count_ends_is_refused():
    with pytest.raises(InputError, match="runs 1000000000 times, with no condition that ends it"):
        read(MATRIX.format(LOOP.format("Identity(on)")), 10**9)


def test_size_that_the_file_states_wrongly_refuses_no_index():
    proto = model(MATRIX.format("Gather<axis=1>(c, i)"), w=random(8, 8), i=np.array([7]))
    stated = proto.graph.value_info.add()
    stated.CopyFrom(proto.graph.input[0])
    stated.name = "c"
    stated.type.tensor_type.shape.dim[1].dim_value = 4
    io.load(proto)
