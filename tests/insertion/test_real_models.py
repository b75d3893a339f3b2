"""The committed classifiers through insertion and folding: one exported from PyTorch, one from Keras (channels last)."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import fashion_mnist
from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.insertion import insert
from tests.models import float_kernels, operators, session

FOLDER = Path(fashion_mnist.__file__).parent
MODELS = {"resnet20": fashion_mnist.calibration, "separable": fashion_mnist.calibration_nhwc}
TESTS = {"resnet20": fashion_mnist.test, "separable": fashion_mnist.test_nhwc}
IMAGES = 1024


@cache
def deployed(name: str, **settings) -> onnx.ModelProto:
    return fold(insert(FOLDER / f"{name}.onnx", MODELS[name], Config(**settings)))


def accuracy(proto: onnx.ModelProto, name: str) -> float:
    run, right, seen = session(proto), 0, 0
    for batch in TESTS[name]():
        (logits,) = run.run(None, {run.get_inputs()[0].name: batch["image"]})
        right += int((logits.argmax(axis=1) == batch["label"]).sum())
        seen += len(logits)
        if seen >= IMAGES:
            break
    return right / seen


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_and_matrix_product_runs_on_integers(name, bits):
    assert float_kernels(deployed(name, weight_bits=bits, activation_bits=bits)) == set()


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_keep_the_accuracy(name, target):
    before = accuracy(onnx.load(FOLDER / f"{name}.onnx"), name)
    # one point: 10 of 1,024 images
    assert accuracy(deployed(name, target=target), name) >= before - 0.01


# a quarter is the weights; scales, biases and the text of the graph weigh more the smaller the net
@pytest.mark.parametrize(("name", "share"), [("resnet20", 0.285), ("separable", 0.36)])
def test_file_is_not_much_more_than_a_quarter_of_the_float_one(name, share):
    assert deployed(name).ByteSize() <= share * (FOLDER / f"{name}.onnx").stat().st_size


def test_nothing_but_kernels_and_movement_is_left_of_the_separable_model():
    kernels = {"Conv", "Gemm", "Add", "GlobalAveragePool", "Reshape", "Squeeze", "Softmax"}
    assert set(operators(deployed("separable"))) == kernels | {"QuantizeLinear", "DequantizeLinear"}


def test_calibration_data_of_the_demo_is_what_the_models_take():
    assert next(iter(MODELS["resnet20"]()))["image"].dtype == np.float32
