"""Zero points of weights are stated: runtimes that rewrite int8 codes to uint8 need them (`session.x64quantprecision`)."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.insertion import insert
from tests import stock
from tests.models import FLOAT_KERNELS, batches, float_kernels, kernels, model, outputs, random

NET = model(
    """(float[N,4,8,8] x) => (float[N,5] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a)
        c = Conv<group=4, pads=[1,1,1,1]>(r, d) s = Relu(c) g = GlobalAveragePool(s) f = Flatten(g) y = Gemm(f, v) }""",
    w=random(4, 4, 3, 3),
    b=random(4),
    d=random(4, 1, 3, 3),
    v=random(4, 5),
)
#: What leaves a Conv with int8 weights in float, and what makes it an integer kernel.
SETTINGS = {
    "defaults": {},
    "weights of one scale": {"weight_granularity": "per_tensor"},
    "asymmetric weights": {"weight_symmetric": False},
    "inputs in float": {"quantize_inputs": False},
    "weights alone": {"quantize_activations": False},
    "for openvino": {"target": "openvino"},
}
ABORTS = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.add_session_config_entry("session.x64quantprecision", "1")
for path in sys.argv[1:]:
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
print("loaded")
"""


def deployed(settings):
    return fold(insert(NET, batches(NET), Config(**settings)))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_weight_states_its_zero_point(settings):
    weights = [q for q in qdq.quantizers(io.load(deployed(settings))) if q.is_weight and q.bits == 8]
    assert len(weights) == 3
    assert all(q.zero_point is not None and q.zero_points.shape == q.scales.shape for q in weights)


@stock.needs_stock
@pytest.mark.parametrize("precise", [False, True], ids=["plain", "x64quantprecision"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_deployed_model_runs_in_stock_onnxruntime_whether_exact_kernels_are_asked_for_or_not(settings, precise):
    proto, (batch,) = deployed(settings), batches(NET, 1)
    (found,), operators = stock.run(proto, batch, precise=precise)
    (expected,) = outputs(proto, batch)
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())
    if settings in ({}, SETTINGS["weights of one scale"]):
        assert not set(operators) & FLOAT_KERNELS


def test_deployed_models_load_here_with_exact_kernels_asked_for(tmp_path):
    """ONNX Runtime 1.19.2 ends the process at a Conv whose weight has no zero point."""
    for number, settings in enumerate(SETTINGS.values()):
        onnx.save(deployed(settings), tmp_path / f"{number}.onnx")
    done = subprocess.run([sys.executable, "-c", ABORTS, *tmp_path.iterdir()], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "loaded")


def test_stated_zero_points_leave_every_layer_an_integer_kernel():
    assert not float_kernels(deployed({}))
    assert kernels(deployed({}))["QLinearConv"] == 2
