import numpy as np
import pytest

import onnxqat
from tests.models import array, model, outputs, random

TABLE = random(12, 8)
WAYS = {
    "transposed at run time": ("t = Transpose<perm=[1,0]>(e) y = MatMul(h, t)", {}),
    "stored twice": ("y = MatMul(h, t)", {"t": np.ascontiguousarray(TABLE.T)}),
    "stored twice alike": (
        "f = Reshape(h, flat) y = Gemm<transB=1>(f, t)",
        {"t": TABLE.copy(), "flat": np.array([-1, 8])},
    ),
}


def tied(end, more):
    return model(
        f"(int64[N,5] ids) => (float[A,B,C] y) {{ g = Gather(e, ids) h = MatMul(g, w) {end} }}".replace(
            "float[A,B,C]", "float[A,12]" if "Gemm" in end else "float[A,B,C]"
        ),
        e=TABLE,
        w=random(8, 8),
        **more,
    )


@pytest.mark.parametrize(("end", "more"), WAYS.values(), ids=WAYS)
def test_tied_table_is_one_initializer_and_trained_as_one(end, more):
    proto = tied(end, more)
    data = [{"ids": np.random.default_rng(seed).integers(0, 12, (4, 5))} for seed in range(3)]
    qdq = onnxqat.insert(proto, data)
    assert sum(tensor.dims in ([12, 8], [8, 12]) for tensor in qdq.graph.initializer) == 1
    want, got = outputs(proto, data[0])[0], outputs(qdq, data[0])[0]
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()
    trainer = onnxqat.Trainer(qdq, loss="mse", optimizer=onnxqat.AdamW(lr=1e-2))
    trainer.step({**data[0], "label": np.zeros_like(want)})
    name = next(tensor.name for tensor in qdq.graph.initializer if tensor.dims in ([12, 8], [8, 12]))
    assert not np.array_equal(array(trainer.model(), name), array(qdq, name))
    onnxqat.fold(trainer.model())


def test_tables_that_are_equal_as_they_were_initialized_stay_apart():
    data = [{"ids": np.random.default_rng(0).integers(0, 8, (4, 5))}]
    proto = model(
        "(int64[N,5] ids) => (float[N,5,8] y) { g = Gather(e, ids) h = MatMul(g, w) y = MatMul(h, t) }",
        e=np.eye(8, dtype=np.float32), w=random(8, 8), t=np.eye(8, dtype=np.float32),
    )  # fmt: skip
    assert sum(tensor.dims == [8, 8] for tensor in onnxqat.insert(proto, data).graph.initializer) == 3
