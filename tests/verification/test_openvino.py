"""Models for OpenVINO, trained a little: the same answers there, by integer kernels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import fashion_mnist
from onnxqat import AdamW, Config, Report, Trainer, fold, insert, verify
from onnxqat.verification.fusion import WEIGHTED
from tests.models import batches, model, random

FOLDER = Path(fashion_mnist.__file__).parent
STEPS, IMAGES = 3, 1024


def first(data: Callable[[], fashion_mnist.Batches], images: int) -> list[dict[str, np.ndarray]]:
    return [batch for batch, _ in zip(data(), range(0, images, fashion_mnist.BATCH), strict=False)]


def report(name: str, layout: str, config: Config) -> Report:
    """Of a committed model, inserted, trained for some steps and folded."""
    parts = {part: getattr(fashion_mnist, f"{part}{layout}") for part in ("calibration", "train", "test")}
    trainer = Trainer(insert(FOLDER / f"{name}.onnx", parts["calibration"], config), optimizer=AdamW(lr=1e-4))
    for batch in first(parts["train"], STEPS * fashion_mnist.BATCH):
        trainer.step(batch)
    trained = trainer.model()
    return verify(trained, fold(trained), first(parts["test"], IMAGES), runtime="openvino")


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        Config(target="openvino"),
        Config(target="openvino", activation_symmetric=False, overflow_fix="enable"),
    ],
    ids=["symmetric", "asymmetric, 7-bit weights"],
)
@pytest.mark.parametrize(("name", "layout"), [("resnet20", ""), ("separable", "_nhwc")], ids=["resnet20", "separable"])
def test_deployed_model_gives_the_trained_ones_answers_in_openvino_by_integer_kernels(name, layout, config):
    found = report(name, layout, config)
    assert found.samples == IMAGES
    assert found.agreement >= 0.997
    assert found.deployed > 0.9
    weighted = [kernel for kernel in found.kernels if kernel.op_type in WEIGHTED]
    assert len(weighted) == {"resnet20": 22, "separable": 16}[name]
    assert {kernel.kind for kernel in weighted} == {"integer"}


def residual(body: str) -> onnx.ModelProto:
    weights = {name: random(8, 8, 3, 3, seed=seed) for seed, name in enumerate("wvu")}
    return model(f"(float[N,8,8,8] x) => (float[N,8,8,8] y) {{ {body} }}", **weights)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, v) s = Add(r, b) t = Relu(s) "
        "y = Conv<pads=[1,1,1,1]>(t, u)",
        "a = Conv<pads=[1,1,1,1]>(x, w) b = Conv<pads=[1,1,1,1]>(x, v) s = Add(a, b) t = Relu(s) "
        "y = Conv<pads=[1,1,1,1]>(t, u)",
    ],
    ids=["identity", "two convolutions"],
)
def test_sum_behind_a_convolution_is_the_trained_one_to_a_step(body):
    """OpenVINO adds in the convolution's accumulator and skips the rounding of a quantizer between the two."""
    proto = residual(body)
    quantized = insert(proto, batches(proto), Config(target="openvino"))
    found = verify(quantized, fold(quantized), batches(proto, 4), runtime="openvino")
    (output,) = found.outputs
    assert output.steps < 1
    assert found.integer_count() == (3, 3)


@pytest.mark.parametrize(
    ("shape", "linear"), [("N,6,16", "MatMul(r, v)"), ("N,16", "Gemm(r, v, d)")], ids=["MatMul", "Gemm"]
)
def test_sum_behind_a_linear_layer_is_the_trained_one_to_a_step(shape, linear):
    """A pair between the two would cost accuracy and gain nothing: the layer adds before it rounds."""
    body = f"(float[{shape}] x) => (float[{shape}] y) {{ a = MatMul(x, w) r = Relu(a) b = {linear} y = Add(x, b) }}"
    proto = model(body, w=random(16, 32), v=random(32, 16, seed=1), **({"d": random(16)} if "Gemm" in linear else {}))
    data = [{"x": random(4, *map(int, shape.split(",")[1:]), seed=seed, scale=1.0)} for seed in range(4)]
    quantized = insert(proto, data, Config(target="openvino"))
    assert "b" not in {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    found = verify(quantized, fold(quantized), data, runtime="openvino")
    (output,) = found.outputs
    assert output.steps < 1
    integer, layers = found.integer_count()
    assert integer == layers


def test_signal_after_openvino_has_run_is_handled(tmp_path):
    """It gives threads stacks for handlers and takes them away again, from the wrong thread where another lets go of a model."""
    onnx.save(residual("y = Conv<pads=[1,1,1,1]>(x, w)"), tmp_path / "m.onnx")
    program = """
import faulthandler, signal, sys, threading
faulthandler.enable()
from onnxqat.verification import openvino
held = [openvino.load(sys.argv[1], 1, False)]
thread = threading.Thread(target=held.clear)
thread.start(), thread.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""
    ended = subprocess.run([sys.executable, "-c", program, tmp_path / "m.onnx"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


#: Data movement from t [4,4,8,8], and where the codes of a node's output are moved.
MOVED = {
    "Tile": "k = Tile(t, twice)",
    "Gather": "k = Gather<axis=2>(t, rows)",
    "pool": "k = MaxPool<kernel_shape=[2,2]>(t)",
    "sum, transposed": "u = Conv(t, v) s = Add(t, u) k = Transpose<perm=[0,1,3,2]>(s)",
    "gate, transposed": "u = Sigmoid(t) s = Mul(t, u) k = Transpose<perm=[0,1,3,2]>(s)",
}


@pytest.mark.parametrize("nodes", MOVED.values(), ids=MOVED)
def test_layers_behind_data_movement_are_right_beside_a_concat(nodes):
    """Where a Concat is anywhere in the model, OpenVINO loses zero points that it gives int8 codes itself."""
    body = f"j = Concat<axis=1>(x, x) a = Conv(j, w) t = Conv(a, v) {nodes} y = Conv(k, v)"
    weights = {"w": random(4, 8, 1, 1), "v": random(4, 4, 1, 1, seed=1)}
    constants = {"twice": np.array([1, 1, 2, 1]), "rows": np.array([0, 2, 3])}
    used = {name: array for name, array in constants.items() if name in nodes}
    proto = model(f"(float[4,4,8,8] x) => (float[A,B,C,D] y) {{ {body} }}", **weights, **used)
    quantized = insert(proto, batches(proto), Config(target="openvino"))
    (output,) = verify(quantized, fold(quantized), batches(proto, 1), runtime="openvino").outputs
    assert output.steps < 1.5


@pytest.mark.parametrize("between", ["", "Relu"])
def test_convolution_keeps_its_bias_in_a_model_that_computes_with_its_sizes(between):
    """OpenVINO reads the sizes in front of the bias, and adds that of the first channel to all of them."""
    proto = model(
        f"""(float[N,3,8,8] x) => (float[A,B] y) {{ c = Conv(x, w, b) a = {between or "Identity"}(c) d = Conv(a, v)
        s = Shape(x) n = Gather(s, zero) m = Mul(n, two) u = Concat<axis=0>(m, rest) y = Reshape(d, u) }}""",
        w=random(8, 3, 1, 1),
        b=random(8, scale=1),
        v=random(8, 8, 1, 1),
        zero=np.array([0]),
        two=np.array([2]),
        rest=np.array([-1]),
    )
    quantized = insert(proto, batches(proto), Config(target="openvino"))
    found = verify(quantized, fold(quantized), batches(proto, 1), runtime="openvino")
    assert found.outputs[0].steps < 1.5
    assert found.integer_count() == (2, 2)
