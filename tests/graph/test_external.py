"""Models whose weights stay in files, given to a runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxqat.graph import external
from tests.models import model, random


def no_link(self, target):
    raise OSError(1314, "A required privilege is not held by the client")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_runtime_reads_weights_where_they_lie_or_in_a_copy(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(Path, "symlink_to", no_link)
    weight, x = random(64, 64), random(2, 64)
    proto = model("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=weight)
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    onnx.save(proto, tmp_path / "there" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    external.save_linked(ir.load(tmp_path / "there" / "m.onnx"), tmp_path / "here" / "m.onnx")
    assert [path.is_symlink() for path in (tmp_path / "here").glob("*m.data")] == [links]
    if not links:  # onnxruntime refuses data that leaves the model's folder, unless its file is given at once
        session = ort.InferenceSession(tmp_path / "here" / "m.onnx", providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, rtol=1e-5, atol=1e-6)
