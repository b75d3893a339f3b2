"""The benchmark of mixed precision: random widths have the budget's mean, and only whole networks get lines."""

import numpy as np
import pytest

import onnxqat
from onnxqat import Config
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from tests.models import model, random
from tools.benchmark_mixed import SEEDS, SUBJECTS, WAYS, shuffled, table


@pytest.mark.parametrize("seed", SEEDS)
def test_random_widths_have_the_mean_of_the_budget_in_the_model_that_they_make(seed):
    weights = {"w": random(8, 6), "v": random(6, 10), "u": random(10, 4)}
    net = model("(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, u) }", **weights)
    data, plain = [{"x": random(16, 8)}], Config(first_last_bits=None)
    config, mean, _ = shuffled(io.load(onnxqat.insert(net, data, plain)), plain, 4, seed)
    bits = {q.source.name: q.bits for q in quantizers(io.load(onnxqat.insert(net, data, config))) if q.is_weight}
    assert mean == pytest.approx(
        np.average([bits[name] for name in weights], weights=[w.size for w in weights.values()])
    )
    assert 3.95 < mean <= 4


def test_a_network_that_is_not_measured_whole_has_no_line():
    line = {"float": 90.0, "inserted": 80.0, "trained": 85.0, "distance_trained": 0.1, "bits": 4.0, "seconds": 3.0}
    names = list(SUBJECTS)[:2]
    found = {(names[0], way, seed): {**line, "seed": seed} for way in WAYS for seed in SEEDS}
    found[names[1], WAYS[0], SEEDS[0]] = line
    lines = list(table(found))
    assert len(lines) == 2 + len(WAYS)
    assert "85.00 / 85.00" in lines[2]
