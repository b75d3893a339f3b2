from importlib import metadata

import numpy as np
import pytest

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.numerics import quantize
from onnxqat.runtime import Inference, check_packages, explained
from tests.models import model, random

MODEL = model("(float[N,3] x) => (float[N,2] y, float[N,2] z) { y = MatMul(x, w) z = Relu(y) }", w=random(3, 2))


def test_batch_may_hold_more_than_the_inputs():
    x = random(4, 3)
    found = Inference(MODEL)({"x": x, "label": np.arange(4)})
    assert list(found) == ["y", "z"]
    np.testing.assert_allclose(found["y"], x @ random(3, 2), rtol=1e-5, atol=1e-6)


def test_only_the_outputs_asked_for_are_computed():
    assert list(Inference(MODEL, ["z"])({"x": random(4, 3)})) == ["z"]


def test_model_that_the_runtime_cannot_load_is_refused_in_one_line():
    broken = model("(float[N,3] x) => (float[N,2] y) { y = MatMul(x, nowhere) }")
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime cannot load it") as caught:
        Inference(broken)
    assert "\n" not in str(caught.value)


def test_a_node_without_a_kernel_is_named_with_the_remedy():
    lacking = model("(double[N,3,4,4] x, double[3,3,1,1] w) => (double[N,3,4,4] y) { [only] y = Conv (x, w) }")
    with pytest.raises(
        UnsupportedModelError, match=r"Conv\(\d+\) node with name 'only'; it has none in onnxruntime .*newer"
    ):
        Inference(lacking)


def test_work_that_fails_on_a_model_that_no_runtime_loads_gives_the_runtimes_reason():
    broken = model("(float[N,3] x) => (float[N,2] y) { a = MatMul(x, w) y = Add(a, b) }", w=random(3, 2), b=random(4))
    with pytest.raises(UnsupportedModelError, match=r"ONNX Runtime cannot load it.*Add"), explained(broken):
        raise IndexError
    with pytest.raises(IndexError), explained(MODEL):
        raise IndexError


def test_batch_that_the_model_cannot_take_is_refused_in_one_line():
    with pytest.raises(InputError, match="cannot run it on this batch") as caught:
        Inference(MODEL)({"x": random(4, 5)})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("kept", "version"),
    [("onnxruntime-training-cpu", "==1.19.2"), ("onnxruntime-training", "==1.19.2"), ("onnxruntime-gpu", "")],
)
def test_two_packages_side_by_side_are_refused_with_the_command_that_repairs_it(monkeypatch, kept, version):
    def installed(name: str) -> str:
        if name not in (kept, "onnxruntime"):
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", installed)
    with pytest.raises(InputError, match=f"pip uninstall -y onnxruntime {kept} && pip install {kept}{version}`"):
        check_packages()


def test_qnn_of_today_stands_beside_the_runtime(monkeypatch):
    installed = {"onnxruntime": "1.32.0", "onnxruntime-qnn": "2.7.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    check_packages()
    installed["onnxruntime-qnn"] = "1.24.4"
    with pytest.raises(InputError, match="onnxruntime and onnxruntime-qnn are installed side by side"):
        check_packages()


def test_one_package_alone_is_fine():
    check_packages()


def test_quantized_layers_are_computed_as_in_training_unless_integer_kernels_are_asked_for():
    """The sum of 4,000 products is exact as an integer, and rounded as a float."""
    codes = np.random.default_rng(0).integers(-60, 60, (4000, 3)).astype(np.int8)
    proto = model(
        """(float[N,4000] x) => (float[N,3] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
            w = DequantizeLinear(c, t, o) y = MatMul(d, w) }""",
        s=np.float32(0.013),
        z=np.uint8(3),
        c=codes,
        t=np.float32(0.0017),
        o=np.int8(0),
    )
    x = random(8, 4000)
    exact = (quantize(x, np.float32(0.013), 3, 0, 255) - 3).astype(np.int64) @ codes * (0.013 * 0.0017)
    float_error, integer_error = (
        np.abs(Inference(proto, integer_kernels=integer)({"x": x})["y"] / exact - 1).max() for integer in (False, True)
    )
    assert integer_error < 3e-7 < float_error < 1e-3
