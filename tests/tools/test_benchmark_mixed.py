"""The benchmark of mixed precision: random widths have the budget's mean, and only whole networks get lines."""

import numpy as np
import onnx
import pytest

from onnxqat import Config
from tests.models import model, random
from tools.benchmark_mixed import SEEDS, SUBJECTS, WAYS, shuffled, table

SIZES = {"w": 48, "v": 60, "u": 40}


@pytest.mark.parametrize("seed", SEEDS)
def test_random_widths_have_the_mean_of_the_budget(seed, tmp_path):
    weights = {"w": random(8, 6), "v": random(6, 10), "u": random(10, 4)}
    net = "(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, u) }"
    onnx.save(model(net, **weights), tmp_path / "net.onnx")
    config, mean, _ = shuffled({"w": "a", "v": "b", "u": "y"}, tmp_path / "net.onnx", Config(), 4, seed)
    bits = dict(zip(SIZES, (override.weight_bits for override in config.overrides), strict=True))
    assert mean == pytest.approx(np.average(list(bits.values()), weights=list(SIZES.values())))
    assert 3.95 < mean <= 4


def test_a_network_that_is_not_measured_whole_has_no_line():
    line = {"float": 90.0, "inserted": 80.0, "trained": 85.0, "bits": 4.0, "seconds": 3.0}
    names = list(SUBJECTS)[:2]
    found = {(names[0], way, seed): line for way in WAYS for seed in SEEDS} | {(names[1], WAYS[0], SEEDS[0]): line}
    lines = list(table(found))
    assert len(lines) == 2 + len(WAYS)
    assert "85.00 / 85.00" in lines[2]
