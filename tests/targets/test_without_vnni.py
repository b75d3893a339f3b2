"""Deployed models on a processor without VNNI, which QEMU emulates: the same answers as on any other.

Each operator stands between two convolutions whose weights have one sign, so that pairs of products would saturate at once.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxqat import Config, fold, insert
from onnxqat.graph import io
from onnxqat.targets import TARGETS
from onnxqat.verification.host import opened
from tests.models import batches, model
from tests.models import random as r
from tests.stock import PYTHON as STOCK
from tests.targets.test_targets import ON_CPU, OPERATORS, sandwich

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
#: QEMU 7.2 computes OpenVINO's tanh wrongly in float too.
WRONG_IN_FLOAT = {("openvino", "Tanh"), ("openvino", "LSTM"), ("openvino", "GRU"), ("openvino", "Mish")}
RUN = """
import sys
from pathlib import Path
import numpy
folder, runtime = Path(sys.argv[1]), sys.argv[2]
if runtime == "openvino":
    import openvino
    core = openvino.Core()
    def run(path, batch):
        return core.compile_model(core.read_model(path), "CPU")(batch)[0]
else:
    import onnxruntime
    def run(path, batch):
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, batch)[0]
for path in sorted(folder.glob("*.onnx")):
    batch = dict(numpy.load(path.with_suffix(".npz")))
    numpy.save(path.with_suffix(".npy"), run(str(path), batch))
"""


def provoking(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights of one sign and nearly one size behind the first layer."""
    for one in proto.graph.initializer:
        if one.name in ("v", "v1", "v2", "cw", "mw"):
            weight = 0.25 + 0.025 * np.random.default_rng(0).normal(size=tuple(one.dims))
            one.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), one.name))
    return proto


def joined() -> onnx.ModelProto:
    """Signed values that a Concat joins along the channels, as in a U-Net."""
    body = "a = Conv(x, w, b) t = Conv(a, v1) u = Conv(a, v2) k = Concat<axis=1>(t, u) y = Conv(k, v)"
    weights = {"w": r(4, 4, 3, 3), "b": r(4), "v1": r(4, 4, 1, 1), "v2": r(4, 4, 1, 1), "v": r(4, 8, 1, 1)}
    return model(f"(float[4,4,8,8] x) => (float[A,B,C,D] y) {{ {body} }}", opset=20, ir_version=9, **weights)


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64 (package qemu-user-static)")
@pytest.mark.parametrize("name", ON_CPU)
def test_answers_on_avx2_are_those_of_the_simulation(name, tmp_path):
    runtime, python = TARGETS[name].runtime, {"ort-cpu": STOCK}.get(name, Path(sys.executable))
    if not python.exists():
        pytest.skip("no environment with stock onnxruntime (ONNXQAT_RUNTIME_PYTHON)")
    tried = {one: sandwich(nodes) for one, nodes in OPERATORS.items() if (runtime, one) not in WRONG_IN_FLOAT}
    expected = {}
    with opened("ort") as simulation:
        for operator, proto in {**tried, "Concat of channels": joined()}.items():
            (batch,) = batches(provoking(proto), 1)
            deployed = fold(insert(proto, [batch], Config(target=name)))
            simulation.load(operator, io.load(deployed), simulate=True)
            expected[operator] = next(iter(simulation.run(operator, batch).values()))
            onnx.save(deployed, tmp_path / f"{operator}.onnx")
            np.savez(tmp_path / f"{operator}.npz", **batch)
    command = [QEMU, "-cpu", "Haswell", python, "-c", RUN, tmp_path, runtime]
    subprocess.run(command, check=True, capture_output=True)
    found = {operator: np.load(tmp_path / f"{operator}.npy") for operator in expected}
    off = {key: np.linalg.norm(found[key] - want) / np.linalg.norm(want) for key, want in expected.items()}
    assert {key: one for key, one in off.items() if one > 0.005} == {}
