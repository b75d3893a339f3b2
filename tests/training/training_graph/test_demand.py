import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxqat
from onnxqat.training.loop import steps
from onnxqat.training.trainer import Trainer
from onnxqat.training.training_graph import memory
from onnxqat.training.training_graph.build import load_qdq, training_graph
from onnxqat.training.training_graph.demand import demand
from tests.models import model, random
from tests.training.test_trainer import BODY, WEIGHTS, batches

CHAIN = "(float[N, 8] x) => (float[N, 8] y) { a = Exp(x)  b = MatMul(a, w)  y = Relu(b) }"


@pytest.fixture(scope="module")
def qdq():
    return onnxqat.insert(model(BODY, **WEIGHTS), calibration=[{"x": b["x"]} for b in batches(2)])


def test_demand_is_that_of_the_values_that_live_at_once_and_grows_with_the_batch():
    graph = training_graph(load_qdq(onnxqat.insert(model(CHAIN, w=random(8, 8)), [random(4, 8)])), "mse").training
    few, many = (
        demand(graph, {"x": np.zeros((rows, 8), np.float32), "onnxqat.label/label": np.zeros((rows, 8), np.float32)})
        for rows in (1000, 2000)
    )
    # of a float value of 32 bytes a row, two at least and no more than a dozen live at once
    assert 64_000 < many - few < 400_000


def test_what_is_kept_follows_the_memory_that_is_free(qdq, monkeypatch, caplog):
    batch, results = batches(1)[0], {}
    for free in (None, 10**12, 1000):
        monkeypatch.setattr(steps, "free_memory", lambda free=free: free)
        run = Trainer(qdq, threads=1)
        kinds = [node.op_type for node in run._steps.engine.training.graph]
        with caplog.at_level(logging.INFO):
            results[free] = run.gradients(batch)
        more = [node.op_type for node in run._steps.engine.training.graph]
        assert (more.count("QuantizeLinear") > kinds.count("QuantizeLinear")) == (free == 1000)
    assert "outputs of quantizers are computed again" in caplog.text
    assert "are free: training may fail" in caplog.text
    (loss, expected), (other, found) = results[10**12], results[1000]
    assert loss == other
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)


def test_run_short_of_memory_says_so_and_goes_on_to_the_bit_where_there_is_more(qdq, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(steps, "free_memory", lambda: 1000)
    run = Trainer(qdq, threads=1)
    run.step(batches(1)[0])
    assert re.search(r"a step takes about .* GB, .* GB are free: if it fails, use smaller batches", caplog.text)
    run.save(tmp_path / "state")
    monkeypatch.setattr(steps, "free_memory", lambda: 10**12)
    caplog.clear()
    resumed = Trainer.restore(tmp_path / "state")
    for each in (run, resumed):
        each.step(batches(2)[1])
    assert "free" not in caplog.text
    np.testing.assert_array_equal(resumed.state.parameters, run.state.parameters)


#: Takes a step in four parts; prints the peak of memory beyond what the process took before, and the estimate of it.
STEP = """
import sys
from pathlib import Path
import numpy as np
import onnxqat
from onnxqat.training.training_graph.demand import demand
def held(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
run = onnxqat.Trainer(sys.argv[1], "mse", threads=4)
batch = {"x": np.ones((64, 4, 64, 64), np.float32), "label": np.zeros((64, 8, 64, 64), np.float32)}
graph = run._steps.engine.training
before = held("VmRSS")
run.step(batch)
print("PEAK", held("VmHWM") - before, demand(graph, {"x": batch["x"], "onnxqat.label/label": batch["label"]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_parts_of_a_batch_take_together_about_what_the_batch_in_one_piece_is_estimated_to_take(tmp_path):
    names = ["x", *(f"r{i}" for i in range(4)), "y"]
    layers = [f"c{i} = Conv<pads = [1, 1, 1, 1]>({names[i]}, w{i})  {names[i + 1]} = Relu(c{i})" for i in range(5)]
    body = f"(float[N, 4, H, W] x) => (float[N, 8, H, W] y) {{ {'  '.join(layers)} }}"
    weights = {f"w{i}": random(8, 8 if i else 4, 3, 3) for i in range(5)}
    onnxqat.save(onnxqat.insert(model(body, **weights), [random(2, 4, 16, 16)]), tmp_path / "q.onnx")
    command = [sys.executable, "-c", STEP, str(tmp_path / "q.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, estimate = map(int, done.stdout.split("PEAK ")[1].split())
    assert 0.5 * estimate < peak < 2 * estimate  # were memory not shared out, four parts would take four times


GELU = (
    "(float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w)  b = Div(a, root)  c = Erf(b)  d = Add(c, one)  e = Mul(a, d) "
    "f = Mul(e, half)  y = MatMul(f, w) }"
)


def test_cheap_values_are_computed_again_to_the_bit_and_not_kept(monkeypatch):
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    qdq = onnxqat.insert(model(GELU, w=random(8, 8), **constants), [random(4, 8)])
    batch = {"x": random(1000, 8), "label": random(1000, 8, seed=1)}
    runs = [Trainer(qdq, "mse", threads=1)]
    monkeypatch.setattr(memory, "compute_again", lambda *_: None)
    runs.append(Trainer(qdq, "mse", threads=1))
    (loss, found), (other, expected) = (run.gradients(batch) for run in runs)
    assert loss == other
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)
    needed, kept = (demand(run._steps.engine.training, {"x": batch["x"]}) for run in runs)
    assert needed <= kept - 32_000  # at least one value of 32 bytes a row
