"""The outputs of what every stage writes: those of the float model, by name and in order."""

import numpy as np
import onnx
import pytest

import onnxqat
from tests.models import batches, model, outputs, random

IMAGE = {"w": random(4, 4, 3, 3), "b": random(4), "v": random(4, 4, 1, 1, seed=1), "d": random(4, seed=1)}
MOVED = {
    "depth to space": ("y = DepthToSpace<blocksize=2>(k)", "float[N,1,16,16] y", {}),
    "resize": ('y = Resize<mode="nearest">(k, , s)', "float[N,4,16,16] y", {"s": np.array([1, 1, 2, 2], np.float32)}),
    "split": ("y, z = Split<axis=1>(k, s)", "float[N,2,8,8] y, float[N,2,8,8] z", {"s": np.array([2, 2])}),
    "pad": ("y = Pad(k, s)", "float[N,4,10,10] y", {"s": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "maximum": ("y = ReduceMax<axes=[2,3],keepdims=0>(k)", "float[N,4] y", {}),
    "twice": ("t = Transpose(k) y = Transpose(t) z = Flatten(y)", "float[N,4,8,8] y, float[N,256] z", {}),
}


@pytest.mark.parametrize(("end", "results", "more"), MOVED.values(), ids=MOVED)
def test_outputs_behind_data_movement_keep_their_names_in_training(end, results, more):
    nodes = f"a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) k = Conv(r, v, d) {end}"
    proto = model(f"(float[N,4,8,8] x) => ({results}) {{ {nodes} }}", **IMAGE, **more)
    data = batches(proto, 1)
    qdq = onnxqat.insert(proto, data)
    names = [value.name for value in proto.graph.output]
    assert list(onnxqat.gradients(qdq, data[0], wrt=["x"])[0]) == names
    trainer = onnxqat.Trainer(qdq, loss="distill")
    assert trainer.step(data[0]) < 0.01
    assert [value.name for value in trainer.model().graph.output] == names


LAYERS = {"w": random(8, 6), "b": random(6), "v": random(6, 3), "d": random(3)}
SAME = {
    "identity": ("float[N,3] y, float[N,3] y2", "y = Gemm(r, v, d) y2 = Identity(y)"),
    "two identities": ("float[N,3] y, float[N,3] y2", "k = Gemm(r, v, d) y = Identity(k) y2 = Identity(k)"),
    "chain": ("float[N,3] y, float[N,3] y2", "k = Gemm(r, v, d) i = Identity(k) y = Identity(i) y2 = Identity(y)"),
    "dropout": ("float[N,3] y, float[N,3] y2", "y = Gemm(r, v, d) y2 = Dropout(y)"),
    "mask of a dropout": ("float[N,3] y, bool[N,3] m", "k = Gemm(r, v, d) y, m = Dropout(k)"),
    "cast": ("float[N,3] y, float[N,3] y2", "y = Gemm(r, v, d) y2 = Cast<to=1>(y)"),
    "hidden": ("float[N,3] y, float[N,6] h, float[N,6] h2", "h2 = Identity(h) y = Gemm(r, v, d)"),
    "input": ("float[N,3] y, float[N,8] x2", "y = Gemm(r, v, d) x2 = Identity(x)"),
    "weight": ("float[N,3] y, float[6] b2", "y = Gemm(r, v, d) b2 = Identity(b)"),
}


@pytest.mark.parametrize("quantize_outputs", [False, True])
@pytest.mark.parametrize(("results", "end"), SAME.values(), ids=SAME)
def test_outputs_that_are_one_value_stay_apart(results, end, quantize_outputs):
    proto = model(f"(float[N,8] x) => ({results}) {{ h = Gemm(x, w, b) r = Relu(h) {end} }}", **LAYERS)
    data = batches(proto, 2, rows=16)
    qdq = onnxqat.insert(proto, data, onnxqat.Config(quantize_outputs=quantize_outputs))
    trainer = onnxqat.Trainer(qdq, loss="distill")
    trainer.step(data[0])
    for made in (qdq, onnxqat.fold(qdq), trainer.model()):
        onnx.checker.check_model(made)
        assert [value.name for value in made.graph.output] == [value.name for value in proto.graph.output]
        for want, got in zip(outputs(proto, data[0]), outputs(made, data[0]), strict=True):
            assert np.abs(want.astype(float) - got).max() < 0.05 * np.abs(want.astype(float)).max()


def test_outputs_that_are_one_quantized_value_are_all_verified():
    results, end = SAME["identity"]
    proto = model(f"(float[N,8] x) => ({results}) {{ h = Gemm(x, w, b) r = Relu(h) {end} }}", **LAYERS)
    data = batches(proto, 2, rows=16)
    qdq = onnxqat.insert(proto, data, onnxqat.Config(quantize_outputs=True))
    report = onnxqat.verify(qdq, onnxqat.fold(qdq), data)
    assert {output.output: output.steps <= 1 for output in report.outputs} == {"y": True, "y2": True}


def test_a_dropout_that_is_told_to_train_stays():
    proto = model(
        "(float[N,8] x) => (float[N,6] y) { h = MatMul(x, w) on = Constant<value=bool {1}>() r = Constant<value=float {0.5}>() "
        "y = Dropout<seed=1>(h, r, on) }",
        w=LAYERS["w"],
    )
    assert "Dropout" in {node.op_type for node in onnxqat.insert(proto, batches(proto, 1)).graph.node}
