"""Verification of models whose outputs are as large as the data says."""

import json

import numpy as np
import pytest
from rich.console import Console

import onnxqat
from tests.models import model, outputs, random

X = [random(64, 8, seed=seed, scale=1.0) for seed in range(3)]
WEIGHTS = {"w": random(8, 6), "b": random(6), "v": random(6, 6), "z": np.float32(0.1)}
PLACES = """(float[N,8] x) => (float[N,6] y, int64[2,K] places)
    { a = Gemm(x, w, b) y = Gemm(a, v, b) g = Greater(y, z) places = NonZero(g) }"""
VALUES = """(float[N,8] x) => (float[K] found, float[N,6] y)
    { a = Gemm(x, w, b) y = Gemm(a, v, b) g = Greater(y, z) i = NonZero(g) t = Transpose<perm=[1,0]>(i)
      found = GatherND(y, t) }"""
COARSE = onnxqat.Config(weight_bits=5, first_last_bits=None, weight_granularity="per_tensor")


@pytest.fixture(scope="module")
def verified():
    """The report on a Q/DQ model and what was folded from one of coarser weights; and both."""

    def verify(body):
        proto, data = model(body, **WEIGHTS), [{"x": x} for x in X]
        qdq = onnxqat.insert(proto, data)
        coarse = onnxqat.fold(onnxqat.insert(proto, data, COARSE))
        return onnxqat.verify(qdq, coarse, data), qdq, coarse

    return verify


def test_entries_are_counted_and_matched(verified):
    report, qdq, coarse = verified(PLACES)
    ours, theirs = ([outputs(proto, {"x": x}, plain=False)[1].T for x in X] for proto in (qdq, coarse))
    differing = [
        (set(map(tuple, a)), set(map(tuple, b))) for a, b in zip(ours, theirs, strict=True) if len(a) != len(b)
    ]
    (sizes,) = [output.sizes for output in report.outputs if output.output == "places"]
    assert sizes.batches == len(differing) > 0
    assert sizes.trained == sum(len(a) for a, _ in differing)
    assert sizes.deployed == sum(len(b) for _, b in differing)
    assert sizes.shared == sum(len(a & b) for a, b in differing)


def test_the_report_says_how_many_entries_there_are(verified):
    report, *_ = verified(VALUES)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report)
    assert "entries of found" in shown.get()
    assert json.loads(report.to_json())["outputs"][0]["sizes"]["shared"] is None
