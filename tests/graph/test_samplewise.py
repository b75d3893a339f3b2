"""Checked against ONNX Runtime: parts of a batch, put together again, give what the batch gives."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxqat.graph.samplewise.follow import follow
from onnxqat.graph.samplewise.kinds import Coupled, Mean, Rows, Same, Total
from onnxqat.graph.types import infer
from tests.models import model, outputs, random

WEIGHTS = {"w": random(6, 6), "v": random(4, 6), "chosen": np.int64([0, 2, 3, 4])}


def kinds_of(proto, **axes):
    loaded = ir.from_proto(proto)
    infer(loaded)
    kinds = follow(loaded, axes)
    return [kinds[value] for value in loaded.graph.outputs]


def together(kind, parts, rows):
    if isinstance(kind, Rows):
        return np.concatenate(parts, kind.axis)
    if isinstance(kind, Same):
        return parts[0]
    weights = [1, 1] if isinstance(kind, Total) else [rows[0] / sum(rows), rows[1] / sum(rows)]
    return weights[0] * parts[0] + weights[1] * parts[1]


APART = {
    "attention": """(float[N,4,6] x) => (float[N,4,6] y) {
        q = MatMul (x, w) s = Constant <value = int64[4] {0, 0, 2, 3}> () h = Reshape (q, s)
        a = Transpose <perm=[0,2,1,3]> (h) b = Transpose <perm=[0,2,3,1]> (h) c = MatMul (a, b) p = Softmax <axis=-1> (c)
        o = MatMul (p, a) r = Transpose <perm=[0,2,1,3]> (o) u = Constant <value = int64[3] {-1, 4, 6}> ()
        y = Reshape (r, u) }""",
    "attention with heads in the batch": """(float[N,4,6] x) => (float[N,4,6] y) {
        f = Shape (x) n = Gather <axis=0> (f, i0) two = Constant <value_int=2> () m = Mul (n, two)
        l = Unsqueeze (m, a0) e = Constant <value = int64[2] {4, 3}> () s = Concat <axis=0> (l, e)
        z = Transpose <perm=[1,0,2]> (x) g = Constant <value = int64[1] {4}> () k = Constant <value = int64[1] {3}> ()
        s2 = Concat <axis=0> (g, l, k) h = Reshape (z, s2) a = Transpose <perm=[1,0,2]> (h) b = Transpose <perm=[0,2,1]> (a)
        c = MatMul (a, b) p = Softmax <axis=-1> (c) o = MatMul (p, a) r = Transpose <perm=[1,0,2]> (o)
        l2 = Unsqueeze (n, a0) six = Constant <value = int64[1] {6}> () s3 = Concat <axis=0> (g, l2, six)
        back = Reshape (r, s3) y = Transpose <perm=[1,0,2]> (back) }""",
    "tokens as rows": """(float[N,4,6] x) => (float[N,4,6] y) {
        s = Constant <value = int64[2] {-1, 6}> () a = Reshape (x, s) b = Gemm (a, w)
        u = Constant <value = int64[3] {-1, 4, 6}> () y = Reshape (b, u) }""",
    "a token for all": """(float[N,4,6] x) => (float[N,5,6] y) {
        f = Shape (x) n = Slice (f, a0, a1) o = Constant <value = int64[2] {1, 6}> () s = Concat <axis=0> (n, o)
        first = Slice (v, a0, a1) c = Expand (first, s) y = Concat <axis=1> (c, x) }""",
    "time first": """(float[T,N,6] x) => (float[T,N,4] y) { vt = Transpose (v) y = MatMul (x, vt) }""",
    "a recurrent layer": """(float[4,N,6] x) => (float[1,N,3] y) {
        f = Shape (x) n = Slice (f, a1, a2) l = Constant <value = int64[1] {1}> () h = Constant <value = int64[1] {3}> ()
        s = Concat <axis=0> (l, n, h) zero = ConstantOfShape (s)
        all, y, c = LSTM <hidden_size=3> (x, lw, lr, , , zero, zero) }""",
    "one-hot, tiled and summed up": """(float[N,4] x) => (float[N,8] y) {
        i = ArgMax <axis=1, keepdims=0> (x) d = Constant <value_int=4> () on = Constant <value = float[2] {0.0, 1.0}> ()
        h = OneHot (i, d, on) a = CumSum (h, i1) r = Constant <value = int64[2] {1, 2}> () y = Tile (a, r) }""",
    "a mean": """(float[N,4] x) => (float y) {
        m = ReduceMean <keepdims=0> (x) k = Constant <value_float=2.0> () y = Mul (m, k) }""",
    "a sum over the number of samples": """(float[N,4] x) => (float y) {
        total = ReduceSum <keepdims=0> (x) f = Shape (x) n = Gather (f, i0) c = Cast <to=1> (n) y = Div (total, c) }""",
    "what depends on no sample": """(float[N,4] x) => (float[4,6] y) { y = Relu (v) }""",
}
INDICES = {
    "i0": np.int64(0),
    "i1": np.int64(1),
    "a0": np.int64([0]),
    "a1": np.int64([1]),
    "a2": np.int64([2]),
    "lw": random(1, 12, 6),
    "lr": random(1, 12, 3),
}


@pytest.mark.parametrize("name", APART)
def test_parts_of_a_batch_give_what_the_batch_gives(name):
    proto = model(APART[name], **WEIGHTS, **INDICES)
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    axis = [d.dim_param for d in shape].index("N")
    x = random(*(5 if d.dim_param == "N" else d.dim_value or 3 for d in shape))
    [kind] = kinds_of(proto, x=axis)
    parts = [outputs(proto, {"x": np.take(x, rows, axis)})[0] for rows in (range(2), range(2, 5))]
    np.testing.assert_allclose(together(kind, parts, (2, 3)), outputs(proto, {"x": x})[0], rtol=1e-5, atol=1e-6)


COUPLED = {
    "a statistic of the batch": ("m = ReduceMean <axes=[0]> (x) y = Sub (x, m)", "Sub .* back to its samples"),
    "a normalization of the batch": (
        "m = ReduceMax <axes=[0]> (x) y = Sub (x, m)",
        "ReduceMax .* across the samples of a batch",
    ),
    "a softmax over samples": ("y = Softmax <axis=0> (x)", "Softmax .* across the samples"),
    "a reshape": ("s = Constant <value = int64[2] {-1, 3}> () y = Reshape (x, s)", None),
    "a reshape that mixes": ("s = Constant <value = int64[2] {-1, 5}> () y = Reshape (x, s)", "Reshape .* may mix"),
    "a reshape to a fixed batch": ("s = Constant <value = int64[2] {4, -1}> () y = Reshape (x, s)", "Reshape .* mix"),
    "a transpose before a reshape": (
        "t = Transpose (x) s = Constant <value = int64[2] {-1, 6}> () y = Reshape (t, s)",
        "Reshape .* may mix",
    ),
    "a product of samples": ("t = Transpose (x) y = MatMul (x, t)", "MatMul .* along two different axes"),
    "a product over samples": ("t = Transpose (x) y = MatMul (t, x)", "MatMul .* adds up over the samples"),
    "a parameter for each sample": ("y = Mul (x, v)", "Mul .* may differ from one to the next"),
    "some samples": ("y = Slice (x, zero, one)", "Slice .* takes some samples"),
    "a computed choice": ("y = Gather <axis=0> (x, chosen)", "Gather .* takes some samples"),
    "samples put together": ("y = Concat <axis=0> (x, x)", "Concat .* together"),
    "random numbers": ("r = RandomNormalLike (x) y = Add (x, r)", "RandomNormalLike .* random"),
    "an unknown operator": ("y = NonZero (x)", "NonZero .* is not known to keep"),
    "the number of samples": ("s = Shape (x) c = Cast <to=1> (s) y = Add (x, c)", "Add"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_know_of_each_other_are_found(name):
    body, reason = COUPLED[name]
    ends = {"zero": np.int64([0]), "one": np.int64([1])}
    proto = model(f"(float[N,6] x) => (float[A,B] y) {{ {body} }}", **WEIGHTS, **ends)
    if reason is None:
        assert kinds_of(proto, x=0) == [Rows(0, 2)]
        return
    with pytest.raises(Coupled, match=reason):
        kinds_of(proto, x=0)


def test_a_loop_over_samples_and_a_fixed_batch_are_found():
    body = """(float[N,6] x) => (float[N,6] y) { y = Scan <num_scan_inputs=1,
        body = g (float[6] a) => (float[6] b) { b = Relu (a) }> (x) }"""
    with pytest.raises(Coupled, match=r"Scan .* is not known"):
        kinds_of(model(body), x=0)
    with pytest.raises(Coupled, match=r"input 'x' takes batches of a fixed size"):
        kinds_of(model("(float[8,6] x) => (float[8,6] y) { y = Relu (x) }"), x=0)


def test_a_mean_over_labels_weighs_by_what_counts():
    body = """(float[N,6] x, int64[N] label) => (float loss) {
        loss = SoftmaxCrossEntropyLoss <ignore_index=-1> (x, label) }"""
    [kind] = kinds_of(model(body), x=0, label=0)
    assert isinstance(kind, Mean)
    assert kind.weight is not None
