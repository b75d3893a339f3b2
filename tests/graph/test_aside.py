import numpy as np
import onnx_ir as ir
import pytest

from onnxqat.graph import aside, io
from onnxqat.graph.aside import let_go, put_aside, put_weights_aside
from tests import models

MODEL = models.model(
    """(float[N, 4] x) => (float[N, 4] y) {
        k = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
        m = MatMul (x, w)
        a = Add (m, k)
        y = Reshape (a, shape)
    }""",
    w=models.random(4, 4),
    shape=np.array([-1, 4]),
)


@pytest.fixture(params=["in a file", "in memory"])
def where(request, monkeypatch):
    if request.param == "in a file":
        monkeypatch.setattr(aside, "WORTH", 0)
        monkeypatch.setattr(aside, "_LARGE", 0)
    return request.param


def test_arrays_put_aside_are_the_same_before_and_after_their_memory_is_let_go(where):
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (), (7,), (0, 2))]
    found = put_aside([ir.tensor(array) for array in arrays])
    for _ in range(2):
        for one, array in zip(found, arrays, strict=True):
            np.testing.assert_array_equal(one, array)
            assert one.shape == array.shape
            let_go(one)


def test_model_whose_weights_are_put_aside_gives_the_same_answers(where):
    model = io.load(MODEL)
    put_weights_aside(model)
    batch = models.batches(MODEL)[0]
    np.testing.assert_array_equal(models.outputs(io.to_proto(model), batch)[0], models.outputs(MODEL, batch)[0])


def test_nothing_of_the_message_that_a_model_came_in_stays_in_memory(where):
    model = io.load(MODEL)
    put_weights_aside(model)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [node.attributes["value"].as_tensor() for node in model.graph if node.op_type == "Constant"]
    assert len(tensors) == 3
    assert not any(isinstance(tensor, ir.TensorProtoTensor) for tensor in tensors)


def test_full_disk_keeps_arrays_in_memory(monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aside, "WORTH", 0)
    monkeypatch.setattr(aside.tempfile, "TemporaryFile", full)
    np.testing.assert_array_equal(put_aside([ir.tensor(np.arange(3.0))])[0], [0, 1, 2])
