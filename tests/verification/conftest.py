"""Small deployed models as text, hosts of the runtimes, and the other environment that holds stock onnxruntime."""

import os
from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest

from onnxqat.verification.host import opened

ROOT = Path(__file__).parents[2]

#: Names that the bodies below may use; `q` and `xd` are the input's codes and their floats.
PREAMBLE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,2,4,4] x) => (OUTPUTS)
<
  float s = {0.05}, uint8 z = {128}, uint8 z0 = {0}, int8 zi = {0},
  float sw = {0.01}, int8 zw = {0}, float sb = {0.0005}, int32 zb = {0},
  int8[2,2,1,1] w1 = {100, -50, 30, 70}, int8[2,2,1,1] w2 = {-20, 90, 60, -110},
  int32[2] b1 = {10, -20}, int32[2] b2 = {-300, 200}, float[2] bf = {0.1, -0.2},
  float sb_wrong = {0.0007}, float low = {0.0}, float six = {6.0}, float s6 = {0.0235}, float s7 = {0.0275},
  uint8 four_bits = {15}, int64[2] rows = {0, -1}, int8[32,3] wg = {WG}, float[3] bg = {1, 2, 3}
>
{
  q = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(q, s, z)
  w1d = DequantizeLinear(w1, sw, zw)
  w2d = DequantizeLinear(w2, sw, zw)
  b1d = DequantizeLinear(b1, sb, zb)
  b2d = DequantizeLinear(b2, sb, zb)
  BODY
}
"""
GEMM_WEIGHT = ", ".join(str((37 * i) % 255 - 127) for i in range(96))


@pytest.fixture(scope="session")
def network():
    """A function from the body of a network, and its outputs, to the model."""

    def build(body, outputs="float[N,2,4,4] y"):
        text = PREAMBLE.replace("OUTPUTS", outputs).replace("WG", GEMM_WEIGHT).replace("BODY", body)
        model = onnx.parser.parse_model(text)
        # what a body leaves unused goes, as an exporter would not have written it
        tidy = ir.from_proto(model)
        passes.RemoveUnusedNodesPass()(tidy)
        model = ir.to_proto(tidy)
        onnx.checker.check_model(model)
        return model

    return build


@pytest.fixture(scope="session")
def stock_python():
    """Interpreter of an environment with stock onnxruntime; CI must have one."""
    path = Path(os.environ.get("ONNXQAT_RUNTIME_PYTHON", ROOT / ".venv-runtime" / "bin" / "python"))
    if not path.exists():
        message = f"no stock onnxruntime: {path} does not exist; `make` builds it, or set ONNXQAT_RUNTIME_PYTHON"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return str(path)


@pytest.fixture(scope="session")
def qnn_python():
    """Interpreter of an environment with onnxruntime-qnn; a test that needs it skips without one."""
    path = Path(os.environ.get("ONNXQAT_QNN_PYTHON", ROOT / ".venv-qnn" / "bin" / "python"))
    if not path.exists():
        pytest.skip(f"no onnxruntime-qnn: {path} does not exist; `make qnn` builds it, or set ONNXQAT_QNN_PYTHON")
    return str(path)


@pytest.fixture(scope="module", params=["1.19.2", "stock"])
def ort(request):
    """A host of ONNX Runtime, the one of training and the one of today."""
    interpreter = None if request.param == "1.19.2" else request.getfixturevalue("stock_python")
    with opened("ort", interpreter) as host:
        yield host


@pytest.fixture(scope="module")
def openvino():
    """A host of OpenVINO."""
    with opened("openvino") as host:
        yield host
