"""Attributes that end a runtime's process, or that no operator has, are refused on loading with node and attribute."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxqat.errors import InputError
from onnxqat.graph import io
from tests.models import model, random

IMAGE = "(float[N,3,8,8] x) => (float[N,M,H,W] y)"
KERNEL = random(4, 3, 3, 3)

#: A node, the weight that it reads as `w`, and what the refusal says.
ENDING = {
    "stride of Conv": ("Conv<strides=[0,1]>(x, w)", KERNEL, "Conv 'n': strides is 0, 1, below 1"),
    "negative stride": ("Conv<strides=[-2,1]>(x, w)", KERNEL, "strides is -2, 1, below 1"),
    "stride of ConvTranspose": ("ConvTranspose<strides=[1,0]>(x, w)", random(3, 4, 3, 3), "ConvTranspose 'n': strides"),
    "stride of MaxPool": ("MaxPool<kernel_shape=[2,2], strides=[0,0]>(x)", None, "MaxPool 'n': strides is 0, 0"),
    "stride of AveragePool": ("AveragePool<kernel_shape=[2,2], strides=[0,2]>(x)", None, "AveragePool 'n': strides"),
    "stride of LpPool": ("LpPool<kernel_shape=[2,2], strides=[2,0]>(x)", None, "LpPool 'n': strides"),
    "group of 0": ("Conv<group=0>(x, w)", KERNEL, "Conv 'n': group is 0, below 1"),
    "group that does not divide": (
        "Conv<group=3>(x, w)",
        random(4, 1, 3, 3),
        "group is 3, which does not divide the 4",
    ),
    "dilation of 0": ("Conv<dilations=[0,1]>(x, w)", KERNEL, "dilations is 0, 1, below 1"),
    "kernel of 0": ("MaxPool<kernel_shape=[0,2]>(x)", None, "kernel_shape is 0, 2, below 1"),
    "huge kernel": ("AveragePool<kernel_shape=[2147483647,1]>(x)", None, "kernel_shape is 2147483647, 1, beyond"),
    "negative pad": ("Conv<pads=[0,-1,0,0]>(x, w)", KERNEL, "pads is 0, -1, 0, 0, below 0"),
    "huge pad": ("MaxPool<kernel_shape=[2,2], pads=[4294967296,0,0,0]>(x)", None, "pads is 4294967296"),
    "strides for one axis of two": (
        "Conv<strides=[2]>(x, w)",
        KERNEL,
        "strides is 2, which does not fit 2 spatial axes",
    ),
    "pads for one axis of two": ("MaxPool<kernel_shape=[2,2], pads=[1,1]>(x)", None, "does not fit 2 spatial axes"),
    "huge output padding": (
        "ConvTranspose<output_padding=[65536,0]>(x, w)",
        random(3, 4, 3, 3),
        "output_padding is 65536, 0, which is not below the strides",
    ),
    "block of 0": ("DepthToSpace<blocksize=0>(x)", None, "DepthToSpace 'n': blocksize is 0, below 1"),
    "huge block": ("DepthToSpace<blocksize=1099511627776>(x)", None, "blocksize is 1099511627776, beyond"),
    "no window for LRN": ("LRN<size=0>(x)", None, "LRN 'n': size is 0, below 1"),
    "axis beyond 32 bits": ("LayerNormalization<axis=2147483648>(x, w)", random(8), "axis is 2147483648, beyond"),
    "axis below 32 bits": ("Softmax<axis=-9223372036854775808>(x)", None, "axis is -9223372036854775808, below"),
    "axis beyond the data": ("Softmax<axis=4>(x)", None, "Softmax 'n': axis is 4, but what it reads has 4 axes"),
    "batch axes below 0": ("GatherND<batch_dims=-7>(x, w)", np.zeros((1, 1), np.int64), "batch_dims is -7, below 0"),
    "hidden size of another": (
        "LSTM<hidden_size=65536>(s, w, r)",
        random(1, 16, 8),
        "LSTM 'n': hidden_size is 65536, its weights have 4",
    ),
    "text counted for a place beyond any": (
        'TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0, ngram_counts=[0], '
        "ngram_indexes=[1000000000], pool_int64s=[1]>(w)",
        np.array([1]),
        "ngram_indexes is 1000000000, beyond",
    ),
    "a thousand million draws": ("Multinomial<sample_size=1000000000>(w)", random(1, 4), "sample_size is 1000000000"),
    "negative part of Split": ("Split(x, w)", np.array([1000, -992]), "input 1 is 1000, -992, below 0"),
    "order of axes that there are not": ("Transpose<perm=[0,1,2,4]>(x)", None, "perm is 0, 1, 2, 4, which is no order"),
    "axis twice in an order": ("Transpose<perm=[0,1,1,2]>(x)", None, "perm is 0, 1, 1, 2, which is no order of 4"),
    "constant of two values": (
        "Constant<value_int=1, value_float=1.0>()",
        None,
        "Constant 'n' has 2 values instead of",
    ),
    "constant without a value": ("Constant()", None, "Constant 'n' has 0 values instead of one"),
    "negative axis of Resize": ("Resize<axes=[2,-1]>(x, , w)", np.ones(2, np.float32), "axes is 2, -1, below 0"),
}


def network(node: str, weight: np.ndarray | None) -> onnx.ModelProto:
    extra = {} if weight is None else {"w": weight}
    body = f"{IMAGE} {{ y = {node} }}"
    if "LSTM" in node:
        body = f"(float[S,N,8] s) => (float[S,D,N,4] y) {{ y = {node} }}"
        extra["r"] = random(1, 16, 4)
    proto = model(body, opset=18, **extra)
    proto.graph.node[0].name = "n"
    return proto


@pytest.mark.parametrize(("node", "weight", "message"), ENDING.values(), ids=ENDING)
def test_number_that_would_crash_the_runtime_is_refused(node, weight, message):
    with pytest.raises(InputError, match=re.escape(message)):
        io.load(network(node, weight))


def test_number_inside_a_branch_is_refused():
    branches = """then_branch = t () => (float[N,3,8,8] a) { a = MaxPool<kernel_shape=[1,1], strides=[0,1]>(x) },
                  else_branch = e () => (float[N,3,8,8] b) { b = Relu(x) }"""
    body = f"(bool c, float[N,3,8,8] x) => (float[N,3,8,8] y) {{ y = If<{branches}>(c) }}"
    with pytest.raises(InputError, match="strides is 0, 1, below 1"):
        io.load(model(body))


def test_number_inside_a_function_is_refused():
    text = """<ir_version: 8, opset_import: ["": 17, "f": 1]> agraph (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = f.Pool(x) }
        <domain: "f", opset_import: ["": 17]> Pool (a) => (b) { b = MaxPool<kernel_shape=[1,1], strides=[0,0]>(a) }"""
    with pytest.raises(InputError, match="strides is 0, 0, below 1"):
        io.load(onnx.parser.parse_model(text))


@pytest.mark.parametrize("external", [False, True], ids=["weights inside", "weights outside"])
def test_attribute_of_another_type_is_refused(tmp_path, external):
    proto = network("Conv<group=1>(x, w)", KERNEL)
    proto.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("group", 1.5))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=external, size_threshold=0, location="m.data")
    with pytest.raises(InputError, match=r"[Mm]ismatched attribute type.*group.*INT.*FLOAT"):
        io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("frame_length", "message"), [(0, "input 3 is 0, below 1"), (16, None)], ids=["frame of 0", "frame of 16"]
)
def test_frame_of_a_spectrogram_must_not_be_empty(frame_length, message):
    body = "(float[1,N,1] x) => (float[1,F,B,2] y) { y = STFT(x, step, , length) }"
    proto = model(body, step=np.int64(4), length=np.int64(frame_length))
    if message is None:
        io.load(proto)
        return
    with pytest.raises(InputError, match=message):
        io.load(proto)


@pytest.mark.parametrize(
    "node",
    [
        "Conv<strides=[64,64], dilations=[3,3], group=1>(x, w)",
        "MaxPool<kernel_shape=[2,2], pads=[1,1,1,1], strides=[2,2]>(x)",
        "ReduceMean<keepdims=0>(x)",
        "Softmax<axis=-4>(x)",
    ],
)
def test_common_attributes_pass(node):
    io.load(network(node, KERNEL if "Conv" in node else None))


def test_end_of_a_slice_may_be_the_largest_integer():
    body = "(float[N,3,8,8] x) => (float[N,3,8,4] y) { c = Constant<value_ints=[9223372036854775807]>() y = Slice(x, w, c, v) }"
    io.load(model(body, w=np.array([4]), v=np.array([3])))


def test_bytes_that_are_no_text_are_refused():
    proto = network('Conv<auto_pad="VALID">(x, w)', KERNEL)
    proto.graph.node[0].attribute[0].s = b"\xff"
    with pytest.raises(InputError, match="Conv 'n': auto_pad is not UTF-8 text"):
        io.load(proto)


def test_parameters_without_elements_are_refused():
    proto = model("(float[N,8] x) => (float[N,8] y) { y = LayerNormalization(x, w, b) }", w=random(8), b=random(0))
    with pytest.raises(InputError, match="initializer 'b' of LayerNormalization 'y': has no elements"):
        io.load(proto)


@pytest.mark.parametrize("shape", [(3, 1), (2,), ()])
def test_parameters_that_are_not_one_number_a_channel_are_refused(shape):
    proto = model(f"{IMAGE} {{ y = BatchNormalization(x, g, b, b, b) }}", g=random(*shape), b=np.ones(3, np.float32))
    with pytest.raises(
        InputError, match=r"BatchNormalization 'y': its parameters have the shapes .*, not one number for"
    ):
        io.load(proto)
