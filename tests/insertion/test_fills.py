"""Fill values of padding and masks are no part of a range."""

import numpy as np
import pytest

from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from onnxqat.training.trainer import Trainer
from tests.insertion.cases import image
from tests.models import batches, decibels, model, operators, outputs, random

LOWEST = float(np.finfo(np.float32).min)
POOL = "MaxPool<kernel_shape=[2,2],strides=[2,2]>"
SAME = np.array([0, 0, 0, 0, 0, 0, 1, 1])
MASK = np.arange(64).reshape(1, 1, 8, 8) % 5 > 0

#: Between Conv → a and k → Conv.
MASKED = {
    "Pad before MaxPool": "q = Pad(a, pads, f) k = MaxPool<kernel_shape=[3,3],strides=[2,2]>(q)",
    "Pad before a MaxPool that rounds up": "q = Pad(a, pads, f) k = MaxPool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>(q)",
    "Pad wider than MaxPool takes": "q = Pad(a, wide, f) k = MaxPool<kernel_shape=[2,2],strides=[3,3]>(q)",
    "Pad read twice": f"""
        q = Pad(a, pads, f) m = MaxPool<kernel_shape=[3,3],strides=[2,2]>(q) n = {POOL}(q) k = Concat<axis=2>(m, n)""",
    "Where": f"z = Where(mask, a, f) k = {POOL}(z)",
    "Where, mask of what is left out": f"o = Not(mask) z = Where(o, f, a) k = {POOL}(z)",
    "Where, fill expanded": f"e = Expand(f, size) z = Where(mask, a, e) k = {POOL}(z)",
    "Where behind movement": f"z = Where(mask, a, f) t = Transpose<perm=[0,1,3,2]>(z) k = {POOL}(t)",
    "Where before ReduceMax": "z = Where(mask, a, f) k = ReduceMax<axes=[2],keepdims=1>(z)",
    "Where with nothing left in places": f"""
        z = Where(corner, a, f) m = {POOL}(z) there = Greater(m, half) k = Where(there, m, zero)""",
    "mask added": f"z = Add(a, added) k = {POOL}(z)",
    "mask scattered": f"z = ScatterElements<axis=2>(a, rows, filled) k = {POOL}(z)",
    "row joined on": f"z = Concat<axis=2>(a, filled) k = {POOL}(z)",
}  # fmt: skip


def masked(nodes: str, fill: float):
    constants = {
        "f": np.float32(fill), "pads": SAME, "wide": 2 * SAME, "mask": MASK, "size": np.array([1, 4, 8, 8]),
        "corner": np.arange(64).reshape(1, 1, 8, 8) > 20, "half": np.float32(max(fill / 2, LOWEST)),
        "zero": np.float32(0), "added": np.where(MASK, np.float32(0), np.float32(fill)),
        "rows": np.full((2, 4, 1, 8), 3), "filled": np.full((2, 4, 1, 8), fill, np.float32),
    }  # fmt: skip
    used = {name: array for name, array in constants.items() if f"{name}," in nodes or f"{name})" in nodes}
    return image(f"a = Conv<pads=[1,1,1,1]>(x, w, b) {nodes} y = Conv(k, v, d)", **used)


@pytest.mark.parametrize("fill", [-np.inf, LOWEST, -1e9, -1e4, -100.0], ids=str)
@pytest.mark.parametrize("name", MASKED)
def test_fill_in_front_of_a_maximum_costs_no_precision(name, fill):
    proto = masked(MASKED[name], fill)
    data = batches(proto, rows=2)
    qdq = insert(proto, data)
    (expected,) = outputs(proto, data[0])
    assert decibels(expected, outputs(qdq, data[0])[0]) > 33
    assert decibels(expected, outputs(fold(qdq), data[0])[0]) > 33


@pytest.mark.parametrize("name", ["Pad before MaxPool", "Where", "Where before ReduceMax"])
def test_fill_in_front_of_a_maximum_costs_no_precision_on_openvino(name):
    proto = masked(MASKED[name], -1e9)
    data = batches(proto, rows=2)
    qdq = insert(proto, data, Config(target="openvino"))
    assert decibels(*(outputs(one, data[0])[0] for one in (proto, qdq))) > 33


@pytest.mark.parametrize("name", MASKED)
def test_model_with_infinite_fills_trains(name):
    proto = masked(MASKED[name], -np.inf)
    (batch, *_) = data = batches(proto, rows=2)
    trainer = Trainer(insert(proto, data), "mse")
    loss, gradients = trainer.gradients({**batch, "label": outputs(proto, batch)[0] + 1})
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_pad_with_the_lowest_number_becomes_padding_of_the_pooling():
    quantized = insert(masked(MASKED["Pad before MaxPool"], -np.inf), batches(masked(MASKED["Where"], 0), rows=2))
    assert operators(quantized)["Pad"] == 0


def test_mask_of_scores_leaves_attention_as_it_is():
    proto = model(
        """(float[N,5,8] x) => (float[N,5,8] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) m = Where(mask, s, f) p = Softmax(m) o = MatMul(p, v)
        y = MatMul(o, wo) }""",
        **{f"w{name}": random(8, 8, seed=n) for n, name in enumerate("qkvo")},
        mask=np.tri(5, dtype=bool), f=np.float32(-np.inf),
    )  # fmt: skip
    data = batches(proto)
    assert decibels(*(outputs(one, data[0])[0] for one in (proto, insert(proto, data)))) > 33


def test_infinity_that_is_computed_is_refused_by_name_where_it_would_be_quantized():
    body = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) z = Relu(r) [log] l = Log(z) {} y = Conv({}, v, d)"
    proto = image(body.format("", "l"))
    with pytest.raises(InputError, match="value 'l', the result of Log 'log', is infinite on batch 0; bound it"):
        insert(proto, batches(proto))
    proto = image(body.format("e = Exp(l)", "e"))
    insert(proto, batches(proto))
