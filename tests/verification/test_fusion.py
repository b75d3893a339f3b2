"""The fusion report says what the runtimes did with each node, and why some stayed in float."""

import pytest

from onnxqat.graph import io
from onnxqat.verification.host import opened
from onnxqat.verification.run import kernels_of as found_kernels

TWO_CONVS = """
  [first] a = Conv(xd, w1d, b1d)
  r = Relu(a)
  rq = QuantizeLinear(r, s, z0)
  rd = DequantizeLinear(rq, s, z0)
  [second] c = Conv(rd, w2d, b2d)
  cq = QuantizeLinear(c, s, z)
  y = DequantizeLinear(cq, s, z)
"""


def kernels_of(host, proto):
    return {kernel.node: kernel for kernel in found_kernels(host, io.load(proto))}


def test_fused_convolutions_are_integer_kernels(ort, network):
    kernels = kernels_of(ort, network(TWO_CONVS))
    assert {name: (k.kernel, k.kind, k.reason) for name, k in kernels.items()} == {
        "first": ("QLinearConv", "integer", ""),
        "second": ("QLinearConv", "integer", ""),
    }


INTEGER = {
    "residual add": (
        "[n] a = Add(xd, rd) aq = QuantizeLinear(a, s, z) y = DequantizeLinear(aq, s, z)",
        "QLinearAdd",
    ),
    "squeeze and excite product": (
        "[n] a = Mul(xd, rd) aq = QuantizeLinear(a, s, z) y = DequantizeLinear(aq, s, z)",
        "QLinearMul",
    ),
    "max pooling in channels-last layout": (
        "[n] p = MaxPool<kernel_shape = [2, 2]>(rd) c = Conv(p, w2d, b2d) "
        "cq = QuantizeLinear(c, s, z) y = DequantizeLinear(cq, s, z)",
        "NhwcMaxPool",
    ),
    "max pooling whose result is read in float": (
        "[n] p = MaxPool<kernel_shape = [2, 2]>(rd) y = Sigmoid(p)",
        "NhwcMaxPool",
    ),
    "global average": (
        "[n] p = GlobalAveragePool(rd) pq = QuantizeLinear(p, s, z0) y = DequantizeLinear(pq, s, z0)",
        "QLinearGlobalAveragePool",
    ),
    "concatenation": (
        "[n] p = Concat<axis = 1>(xd, rd) pq = QuantizeLinear(p, s, z) y = DequantizeLinear(pq, s, z)",
        "QLinearConcat",
    ),
    "convolution before a clip of codes": (
        "[n] c = Conv(rd, w2d, b2d) cq = QuantizeLinear(c, s, z) c4 = Clip(cq, z0, four_bits) y = DequantizeLinear(c4, s, z)",
        "QLinearConv",
    ),
    "last Gemm without a quantizer behind it": (
        "f = Reshape(rd, rows) wgd = DequantizeLinear(wg, sw, zw) [n] y = Gemm(f, wgd)",
        "QGemm",
    ),
    "product without bias or quantizer behind it": (
        "f = Reshape(rd, rows) wgd = DequantizeLinear(wg, sw, zw) [n] y = MatMul(f, wgd)",
        "MatMulIntegerToFloat",
    ),
}
FIRST = """
  first = Conv(xd, w1d, b1d)
  r = Relu(first)
  rq = QuantizeLinear(r, s, z0)
  rd = DequantizeLinear(rq, s, z0)
"""


@pytest.mark.parametrize(("body", "kernel"), INTEGER.values(), ids=INTEGER)
def test_integer_kernel_is_found_under_the_nodes_name(ort, network, body, kernel):
    found = kernels_of(ort, network(FIRST + body, "float y"))["n"]
    assert (found.kernel, found.kind) == (kernel, "integer")


FLOAT = {
    "activation without integer kernel before the quantizer": (
        "[n] a = Conv(xd, w1d, b1d) [sig] g = Sigmoid(a) gq = QuantizeLinear(g, s, z) y = DequantizeLinear(gq, s, z)",
        "float[N,2,4,4] y",
        "its output goes into Sigmoid 'sig' without a QuantizeLinear",
    ),
    "input without a quantizer": (
        "[t] h = Tanh(xd) [n] a = Conv(h, w1d) aq = QuantizeLinear(a, s, z) y = DequantizeLinear(aq, s, z)",
        "float[N,2,4,4] y",
        "input 'h' comes from Tanh 't' without a DequantizeLinear",
    ),
    "output of the graph": (
        "[n] y = Conv(xd, w1d, b1d)",
        "float[N,2,4,4] y",
        "its output 'y' is a graph output, not quantized",
    ),
    "output that branches before the quantizer": (
        "[n] a = Conv(xd, w1d, b1d) [t] y2 = Tanh(a) [qa] aq = QuantizeLinear(a, s, z) y = DequantizeLinear(aq, s, z)",
        "float[N,2,4,4] y, float[N,2,4,4] y2",
        "its output 'a' is read by Tanh 't', QuantizeLinear 'qa': only one QuantizeLinear may read it",
    ),
    "Relu that the quantizer does not make redundant": (
        "[n] a = Conv(xd, w1d, b1d) [r] g = Relu(a) [qa] gq = QuantizeLinear(g, s, z) y = DequantizeLinear(gq, s, z)",
        "float[N,2,4,4] y",
        "Relu 'r' to [0, inf] cannot be absorbed by QuantizeLinear 'qa', whose uint8 codes reach from -6.4",
    ),
    "Clip narrower than the quantizer": (
        "[n] a = Conv(xd, w1d, b1d) [c] g = Clip(a, low, six) [qa] gq = QuantizeLinear(g, s7, z0) "
        "y = DequantizeLinear(gq, s7, z0)",
        "float[N,2,4,4] y",
        "Clip 'c' to [0, 6] cannot be absorbed by QuantizeLinear 'qa', whose uint8 codes reach from 0 to 7.01",
    ),
    "Flatten, which no quantizer crosses": (
        "[f] h = Flatten(xd) wgd = DequantizeLinear(wg, sw, zw) [n] y = Gemm(h, wgd)",
        "float[N,3] y",
        "input 'h' has no DequantizeLinear: the quantizer stands before Flatten 'f'",
    ),
    "input that no quantizer reaches, brought by a Reshape": (
        "[t] h = Tanh(xd) r = Reshape(h, rows) wgd = DequantizeLinear(wg, sw, zw) [n] y = Gemm(r, wgd)",
        "float[N,3] y",
        "input 'h' comes from Tanh 't' without a DequantizeLinear",
    ),
    "float constant": (
        "[n] a = Add(xd, six) aq = QuantizeLinear(a, s, z) y = DequantizeLinear(aq, s, z)",
        "float[N,2,4,4] y",
        "input 'six' is a float constant",
    ),
    "int8 activations that branch": (
        "q8 = QuantizeLinear(x, s, zi) x8 = DequantizeLinear(q8, s, zi) [n] a = Conv(x8, w1d) aq = QuantizeLinear(a, s, zi) "
        "y = DequantizeLinear(aq, s, zi) b = Conv(x8, w2d) bq = QuantizeLinear(b, s, zi) y2 = DequantizeLinear(bq, s, zi)",
        "float[N,2,4,4] y, float[N,2,4,4] y2",
        "input 'x8' and output 'a' have int8 codes",
    ),
    "operator without an integer kernel": (
        "[n] y = Tanh(xd)",
        "float[N,2,4,4] y",
        "ONNX Runtime has no integer kernel for Tanh",
    ),
    "product with a float bias": (
        "h = Reshape(xd, rows) wgd = DequantizeLinear(wg, sw, zw) [n] m = MatMul(h, wgd) y = Add(m, bg)",
        "float[N,3] y",
        "bias 'bg' is float",
    ),
}


@pytest.mark.parametrize(("body", "outputs", "reason"), FLOAT.values(), ids=FLOAT)
def test_float_node_says_why(ort, network, body, outputs, reason):
    found = kernels_of(ort, network(body, outputs))["n"]
    assert found.kind in ("float", "weight-only")
    assert reason in found.reason


def test_float_bias_keeps_a_convolution_in_float_before_ort_learned_to_quantize_it(network):
    body = "[n] a = Conv(xd, w1d, bf) aq = QuantizeLinear(a, s, z) y = DequantizeLinear(aq, s, z)"
    with opened("ort") as host:
        found = kernels_of(host, network(body))["n"]
    assert (found.kind, found.reason) == (
        "float",
        "bias 'bf' is float; store it as int32 of scale input scale × weight scale",
    )


def test_wrong_bias_scale_keeps_a_convolution_in_float_in_stock_ort(network, stock_python):
    body = """
      bw = DequantizeLinear(b1, sb_wrong, zb)
      [n] a = Conv(xd, w1d, bw)
      aq = QuantizeLinear(a, s, z)
      y = DequantizeLinear(aq, s, z)
    """
    with opened("ort", stock_python) as host:
        found = kernels_of(host, network(body))["n"]
    assert found.kind == "float"
    assert "the scale of bias 'bw' is not input scale × weight scale (off by up to 40.0%)" in found.reason


def test_clip_within_the_quantizers_range_is_absorbed(ort, network):
    body = "[n] a = Conv(xd, w1d, b1d) g = Clip(a, low, six) gq = QuantizeLinear(g, s6, z0) y = DequantizeLinear(gq, s6, z0)"
    assert kernels_of(ort, network(body))["n"].kind == "integer"


def test_node_computed_in_another_nodes_kernel_names_it(ort, network):
    body = "[conv] a = Conv(xd, w1d, b1d) [act] g = LeakyRelu(a) gq = QuantizeLinear(g, s, z) y = DequantizeLinear(gq, s, z)"
    found = kernels_of(ort, network(body))["act"]
    assert (found.kind, found.reason) == ("float", "computed in one kernel with Conv 'conv'")


def test_operator_that_the_runtime_expands_says_what_it_runs_as(ort, network):
    body = (
        FIRST
        + "[act] h = HardSwish(rd) hq = QuantizeLinear(h, s, z) hd = DequantizeLinear(hq, s, z) y = Conv(hd, w2d, b2d)"
    )
    found = kernels_of(ort, network(body))["act"]
    assert (found.kernel, found.kind) == ("HardSigmoid + Mul", "float")
    assert found.reason == "ONNX Runtime has no integer kernel for HardSwish"


def test_shape_and_constant_computations_are_not_reported(ort, network):
    body = """
      shape = Shape(x)
      [shapes] wanted = Concat<axis = 0>(shape)
      [unpack] bias = Add(bf, bf)
      [n] a = Conv(xd, w1d, bias)
      aq = QuantizeLinear(a, s, z)
      ad = DequantizeLinear(aq, s, z)
      y = Reshape(ad, wanted)
    """
    assert list(kernels_of(ort, network(body))) == ["n"]


def test_openvino_runs_layers_on_8_bit_integers(openvino, network):
    kernels = kernels_of(openvino, network(TWO_CONVS))
    assert {k.kernel for k in kernels.values()} == {"Convolution u8"}
    assert {k.kind for k in kernels.values()} == {"integer"}


def test_openvino_says_why_a_layer_is_in_float(openvino, network):
    body = "[t] h = Tanh(xd) [n] y = Conv(h, w1d)"
    found = kernels_of(openvino, network(body))["n"]
    assert (found.kernel, found.kind) == ("Convolution f32", "float")
    assert found.reason == "input 'h' comes from Tanh 't' without a quantizer"
