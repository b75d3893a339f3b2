import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.config_parts import Input
from onnxqat.errors import InputError
from onnxqat.insertion import insert
from tests.models import batches, model, random


def net() -> onnx.ModelProto:
    return model(
        "(int64[N,4] ids, float[N,3] x) => (float[N,2] y) { e = Gather(t, ids) m = ReduceMean<axes=[1], keepdims=0>(e) "
        "s = Add(m, x) y = Gemm(s, w) }",
        t=random(10, 3),
        w=random(3, 2),
    )


IDS, X = Input(name="ids", shape=[2, 4], dtype="int64"), Input(name="x", shape=[2, 3])


def inserted(*described: Input) -> onnx.ModelProto:
    data = [batch | {"ids": np.zeros((4, 4), np.int64)} for batch in batches(net())]
    return insert(net(), data, Config(inputs=described))


@pytest.mark.parametrize(
    "described",
    [
        (),
        (IDS, X),
        (X, IDS),
        (X, IDS.model_copy(update={"name": None})),
        (IDS, X.model_copy(update={"filler": "random"})),
    ],
    ids=["nothing", "by name", "in another order", "one by place", "filled with random numbers"],
)
def test_description_that_fits_changes_nothing(described):
    assert inserted(*described) == inserted()


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ((IDS,), "lacks 'x'"),
        ((IDS, X, X), "describes 'x'; the model takes 'ids', 'x', each once"),
        ((IDS, X, Input(shape=[1])), "describes one more than it has"),
        ((IDS, Input(name="z", shape=[2, 3])), "describes 'z'"),
        ((IDS, Input(name="x", shape=[2, 4])), r"'x' has shape \[2, 4\], the model takes \[any, 3\]"),
        ((Input(name="ids", shape=[2, 4]), X), "'ids' is described as float32, the model takes int64"),
        ((IDS, Input(name="x", shape=[3, 3])), "cannot run it on this batch"),
    ],
    ids=["one missing", "one twice", "too many", "unknown name", "other shape", "other type", "does not run"],
)
def test_description_that_does_not_fit_is_refused(described, message):
    with pytest.raises(InputError, match=f"^configuration: inputs: .*{message}"):
        inserted(*described)
