"""Small float models of every shape that `insert` knows, as text."""

from __future__ import annotations

import numpy as np
import onnx

from tests.models import model
from tests.models import random as r

IMAGE = "(float[N,4,8,8] x) => (float[N,C,H,W] y)"
CONV = {"w": r(4, 4, 3, 3), "b": r(4), "v": r(4, 4, 1, 1, seed=1), "d": r(4, seed=1)}


def image(nodes: str, *, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """`nodes` from x [N, 4, 8, 8] to y; w, b (3 by 3) and v, d (1 by 1) are there."""
    used = {name: array for name, array in (CONV | weights).items() if f"{name}," in nodes or f"{name})" in nodes}
    return model(f"{IMAGE} {{ {nodes} }}", opset=opset, **used)


def between(nodes: str, **weights: np.ndarray) -> onnx.ModelProto:
    """Conv, Relu → r; `nodes` from r to k; Conv."""
    return image(f"a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) {nodes} y = Conv(k, v, d)", **weights)


def squeeze_excite(gate: str) -> onnx.ModelProto:
    return between(
        f"g = GlobalAveragePool(r) c = Conv(g, w1, b) e = Relu(c) f = Conv(e, w2, b) h = {gate}(f) k = Mul(r, h)",
        w1=r(4, 4, 1, 1, seed=2),
        w2=r(4, 4, 1, 1, seed=3),
    )


ints = np.array
ZERO, ONE, SIX = np.float32(0), np.float32(1), np.float32(6)

#: Every weighted node of these becomes an integer kernel of ONNX Runtime.
INTEGER: dict[str, onnx.ModelProto] = {
    "conv": image("y = Conv<pads=[1,1,1,1]>(x, w, b)"),
    "conv without bias": image("y = Conv(x, w)"),
    "conv 1-D": model(
        "(float[N,3,8] x) => (float[N,M,L] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=r(8, 3, 3), b=r(8), v=r(4, 8, 3),
    ),
    "conv 3-D": model(
        "(float[N,3,6,6,6] x) => (float[N,M,A,B,C] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=r(8, 3, 3, 3, 3), b=r(8), v=r(4, 8, 3, 3, 3),
    ),
    "depthwise with relu6": between("t = Conv<group=4>(r, dw, b) k = Clip(t, lo, hi)", dw=r(4, 1, 3, 3), lo=ZERO, hi=SIX),
    "grouped": between("t = Conv<group=2>(r, gw, b) k = Relu(t)", gw=r(4, 2, 3, 3)),
    "strided same": image('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)'),
    "gemm": model(
        "(float[N,8] x) => (float[N,4] y) { a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm(r, v, c) }",
        w=r(6, 8), b=r(6), v=r(6, 4), c=r(4),
    ),
    "matmul": model(
        "(float[N,8] x) => (float[N,4] y) { m = MatMul(x, w) a = Add(m, b) r = Relu(a) y = MatMul(r, v) }",
        w=r(8, 6), b=r(6), v=r(6, 4),
    ),
    "matmul of rank 3": model(
        "(float[N,5,8] x) => (float[N,5,4] y) { m = MatMul(x, w) a = Add(b, m) r = Relu(a) y = MatMul(r, v) }",
        w=r(8, 6), b=r(6), v=r(6, 4),
    ),
    "matmul by a vector": model("(float[N,5,8] x) => (float[N,5] y) { y = MatMul(x, w) }", w=r(8)),
    "matmul by a batch": model("(float[3,5,8] x) => (float[3,5,6] y) { y = MatMul(x, w) }", w=r(3, 8, 6)),
    "residual": between(
        "c = Conv<pads=[1,1,1,1]>(r, w1, b) s = Add(c, r) k = Relu(s)", w1=r(4, 4, 3, 3, seed=2)
    ),
    "residual before relu": between(
        "c = Conv<pads=[1,1,1,1]>(r, w1, b) s = Add(c, a) k = Relu(s)", w1=r(4, 4, 3, 3, seed=2)
    ),
    "squeeze-excite": squeeze_excite("Sigmoid"),
    "squeeze-excite, hard": squeeze_excite("HardSigmoid"),
    "concat": between("c = Conv(r, w1, b) k = Concat<axis=2>(r, c)", w1=r(4, 4, 1, 1, seed=2)),
    "pooling": between(
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) k = AveragePool<kernel_shape=[2,2], strides=[2,2]>(p)"
    ),
    "head": model(
        """(float[N,4,8,8] x) => (float[N,3] y) { a = Conv(x, w, b) r = Relu(a) g = GlobalAveragePool(r) f = Flatten(g)
        y = Gemm(f, v, c) }""",
        w=r(4, 4, 1, 1), b=r(4), v=r(4, 3), c=r(3),
    ),
    "head by mean": model(
        """(float[N,4,8,8] x) => (float[N,3] y) { a = Conv(x, w, b) r = Relu(a) g = ReduceMean<axes=[2,3], keepdims=0>(r)
        y = Gemm(g, v, c) }""",
        w=r(4, 4, 1, 1), b=r(4), v=r(4, 3), c=r(3),
    ),
    "hard swish": image("a = Conv(x, w, b) k = HardSwish(a) y = Conv(k, v, d)"),
    "leaky relu": image("a = Conv(x, w, b) k = LeakyRelu(a) y = Conv(k, v, d)"),
    "swish": image("a = Conv(x, w, b) s = Sigmoid(a) k = Mul(a, s) y = Conv(k, v, d)"),
    "relu6 by min and max": image(
        "a = Conv(x, w, b) m = Max(a, lo) k = Min(m, hi) y = Conv(k, v, d)", lo=ZERO, hi=SIX
    ),
    "relu6 by max of min": image("a = Conv(x, w, b) m = Min(a, hi) k = Max(m, lo) y = Conv(k, v, d)", lo=ZERO, hi=SIX),
    "relu6 by relu and min": between("k = Min(r, hi)", hi=SIX),
    "relu by max": image("a = Conv(x, w, b) k = Max(lo, a) y = Conv(k, v, d)", lo=ZERO),
    "clip that is no relu": image("a = Conv(x, w, b) k = Clip(a, lo, hi) y = Conv(k, v, d)", lo=-ONE, hi=ONE),
    "flatten": model(
        "(float[N,4,3,3] x) => (float[N,2] y) { a = Conv(x, w, b) r = Relu(a) f = Flatten(r) y = Gemm(f, v, c) }",
        w=r(4, 4, 1, 1), b=r(4), v=r(36, 2), c=r(2),
    ),
    "reshape": between("s = Reshape(r, shape) k = Reshape(s, back)", shape=ints([0, -1]), back=ints([0, 4, 8, 8])),
    "transpose": between("k = Transpose<perm=[0,1,3,2]>(r)"),
    "squeeze": between("u = Unsqueeze(r, axis) k = Squeeze(u, axis)", axis=ints([2])),
    "slice": between("k = Slice(r, start, stop, axis)", start=ints([1]), stop=ints([5]), axis=ints([2])),
    "pad": between("k = Pad(r, pads)", pads=ints([0, 0, 1, 1, 0, 0, 2, 1])),
    "pad by reflection": between('k = Pad<mode="reflect">(r, pads)', pads=ints([0, 0, 1, 1, 0, 0, 2, 1])),
    "pad before pooling": between(
        "p = Pad(r, pads) k = MaxPool<kernel_shape=[3,3]>(p)", pads=ints([0, 0, 1, 1, 0, 0, 1, 1])
    ),
    "gather": between("k = Gather<axis=2>(r, rows)", rows=ints([0, 2, 3])),
    "split": between("k, rest = Split<axis=2>(r, sizes)", sizes=ints([3, 5])),
    "resize, nearest": between("k = Resize(r, , scales)", scales=np.array([1, 1, 2, 2], np.float32)),
    "resize, linear": between('k = Resize<mode="linear">(r, , scales)', scales=np.array([1, 1, 2, 2], np.float32)),
    "tile": between("k = Tile(r, times)", times=ints([1, 1, 2, 1])),
    "depth to space": image("a = Conv(x, w, b) t = DepthToSpace<blocksize=2>(a) y = Conv(t, one, )", one=r(2, 1, 1, 1)),
    "channels last": model(
        """(float[N,8,8,4] x) => (float[N,H,W,C] y) { t = Transpose<perm=[0,3,1,2]>(x) a = Conv(t, w, b) r = Relu(a)
        n = Transpose<perm=[0,2,3,1]>(r) m = Transpose<perm=[0,3,1,2]>(n) c = Conv(m, v, d) y = Transpose<perm=[0,2,3,1]>(c) }""",
        **CONV,
    ),
    "batch normalization": image(
        "a = Conv(x, w, b) n = BatchNormalization(a, g, be, mu, va) r = Relu(n) y = Conv(r, v, d)",
        g=r(4, seed=5) + 1, be=r(4, seed=6), mu=r(4, seed=7), va=np.abs(r(4, seed=8)) + ONE,
    ),
    "relu before batch normalization": image(
        "a = Conv(x, w, b) r = Relu(a) n = BatchNormalization(r, g, be, mu, va) y = Conv(n, v, d)",
        g=r(4, seed=5) + 1, be=r(4, seed=6), mu=r(4, seed=7), va=np.abs(r(4, seed=8)) + ONE,
    ),
    "output that is read on": model(
        """(float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) { y = Conv(x, w, b) r = Relu(y) z = Conv(r, v, d) }""",
        **CONV,
    ),
    "shared weight": image("a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w, b)"),
}  # fmt: skip

#: On ONNX Runtime these keep a float kernel; OpenVINO has integer ones.
FLOAT_ON_ORT: dict[str, onnx.ModelProto] = {
    "transposed convolution": between("t = ConvTranspose<strides=[2,2]>(r, u, b) k = Relu(t)", u=r(4, 4, 2, 2)),
    "grouped transposed convolution": between("k = ConvTranspose<group=2>(r, u, b)", u=r(4, 2, 2, 2)),
}

ALL = INTEGER | FLOAT_ON_ORT
