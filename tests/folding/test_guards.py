"""Layers left in float by request stay float in every runtime, and load in all of them."""

import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.training.trainer import Trainer
from onnxqat.verification.host import opened
from onnxqat.verification.run import kernels_of
from tests import stock
from tests.insertion.cases import between, image
from tests.models import FLOAT_KERNELS, batches, kernels, model, outputs, random
from tests.verification.conftest import stock_python  # noqa: F401  (a fixture)

GEMM = """(float[N,8] x) => (float[N,8] y, float[N,8] z) {{ a = Gemm(x, w, b) q = Relu(a) z = Gemm(q, w, b)
    [left] c = {} k = Relu(c) y = Gemm(k, w, b) }}"""
U = random(4, 4, 1, 1, seed=2)
DENSE = {"w": random(8, 8), "b": random(8), "v": random(8, 8, seed=2)}
#: The node `left` stays in float between two pairs.
LEFT = {
    "Conv": between("[left] c = Conv(r, u, b) k = Relu(c)", u=random(4, 4, 3, 3, seed=2)),
    "Conv without bias": between("[left] c = Conv(r, u) k = Relu(c)", u=U),
    "Conv and Clip": between("[left] c = Conv(r, u) k = Clip(c, lo, hi)", u=U, lo=-np.float32(1), hi=np.float32(1)),
    "Conv alone": between("[left] k = Conv(r, u, b)", u=U),
    "Conv behind pooling": between("m = MaxPool<kernel_shape=[2,2]>(r) [left] c = Conv(m, u, b) k = Relu(c)", u=U),
    "Conv before pooling": between("[left] c = Conv(r, u, b) k = MaxPool<kernel_shape=[2,2]>(c)", u=U),
    "ConvTranspose": between("[left] c = ConvTranspose(r, u, b) k = Relu(c)", u=random(4, 4, 2, 2)),
    "Gemm": model(GEMM.format("Gemm(q, v, b)"), **DENSE),
    "Gemm without bias": model(GEMM.format("Gemm(q, v)"), **DENSE),
}  # fmt: skip


def left_in_float(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, list[dict[str, np.ndarray]]]:
    data = batches(LEFT[name])
    quantized = insert(LEFT[name], data, Config(ignore=[{"name": "left"}]))
    return quantized, fold(quantized), data


@stock.needs_stock
@pytest.mark.parametrize("precise", [False, True], ids=["default", "precise"])
@pytest.mark.parametrize("name", LEFT)
def test_layer_left_in_float_stays_float_and_gives_the_trained_answers(name, precise):
    quantized, deployed, (batch, *_) = left_in_float(name)
    found, executed = stock.run(deployed, batch, precise=precise)
    for answer, expected in zip(found, outputs(quantized, batch), strict=True):
        apart = np.abs(answer - expected) / np.abs(expected).max()
        # a code may fall on the other side of a tie
        assert apart.max() < 0.05
        assert apart.mean() < 0.003
    for counted in (executed, kernels(deployed)):
        assert sum(counted[kernel] for kernel in FLOAT_KERNELS) == 1


@stock.needs_stock
def test_verify_says_which_layer_the_runtime_quantizes_against_the_model(stock_python):  # noqa: F811
    _, deployed, _ = left_in_float("Conv")
    (guard,) = [node for node in deployed.graph.node if node.op_type == "Max"]
    reader = next(node for node in deployed.graph.node if guard.output[0] in node.input)
    reader.input[0] = guard.input[0]
    deployed.graph.node.remove(guard)
    with opened("ort", stock_python) as runtime:
        found = {kernel.node: kernel for kernel in kernels_of(runtime, io.load(deployed))}
    assert found["left"].kind == "integer"
    assert "quantizes its float weight by itself" in found["left"].reason
    assert not [kernel for kernel in found.values() if kernel.reason and kernel.node != "left"]


def test_guard_is_no_node_of_the_report_and_folding_again_adds_no_other():
    _, deployed, _ = left_in_float("Conv")
    with opened("ort") as runtime:
        found = kernels_of(runtime, io.load(deployed))
    assert "Max" not in {kernel.op_type for kernel in found}
    assert fold(deployed).graph == deployed.graph


def test_deployed_model_with_a_guard_trains():
    _, deployed, (batch, *_) = left_in_float("ConvTranspose")
    trainer = Trainer(deployed, "mse")
    _, gradients = trainer.gradients({**batch, "label": outputs(deployed, batch)[0] + 1})
    assert all(gradient.any() for gradient in gradients.values() if gradient.ndim > 1)


SETTINGS = {
    "ignored": Config(ignore=[{"name": "middle"}]),
    "inputs in float": Config(quantize_inputs=False),
    "weights alone": Config(quantize_activations=False),
    "activations alone": Config(quantize_weights=False),
    "signed activations": Config(target="openvino", activation_symmetric=True, activation_signed=True),
    "for openvino": Config(target="openvino"),
}


@stock.needs_stock
@pytest.mark.parametrize("precise", [False, True], ids=["default", "precise"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_partly_quantized_models_load_and_give_the_trained_answers(kind, setting, precise):
    if kind == "Conv":
        proto = image(
            "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) [middle] m = Conv(r, v, d) k = Relu(m) y = Conv(k, v)"
        )
    else:
        layer = "{0} = Gemm({1}, {2}, b)" if kind == "Gemm" else "m{0} = MatMul({1}, {2}) {0} = Add(m{0}, b)"
        body = f"{layer.format('a', 'x', 'w')} r = Relu(a) [middle] {layer.format('m', 'r', 'v')} k = Relu(m) y = MatMul(k, w)"
        shape = "N,8" if kind == "Gemm" else "N,3,8"
        proto = model(f"(float[{shape}] x) => (float[{shape}] y) {{ {body} }}", **DENSE)
    (batch, *_) = data = batches(proto)
    quantized = insert(proto, data, SETTINGS[setting])
    (found,), _ = stock.run(fold(quantized), batch, precise=precise)
    (expected,) = outputs(quantized, batch)
    # a code may fall on the other side of a tie
    apart = np.abs(found - expected) / np.abs(expected).max()
    assert apart.max() < 0.05
    assert apart.mean() < 0.003
