"""Models as exporters write them, of every shape, through insert, a training step and fold; then run in the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxqat.config import Config
from onnxqat.errors import UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.training.optimize.optimizers import AdamW
from onnxqat.training.trainer import Trainer
from tests.models import model, operators, outputs, random

TYPES = {
    TensorProto.FLOAT: lambda shape, rng: rng.normal(size=shape).astype(np.float32),
    TensorProto.FLOAT16: lambda shape, rng: rng.normal(size=shape).astype(np.float16),
    TensorProto.INT64: lambda shape, rng: rng.integers(0, 4, shape),
    TensorProto.INT32: lambda shape, rng: rng.integers(0, 4, shape).astype(np.int32),
    TensorProto.UINT8: lambda shape, rng: rng.integers(0, 256, shape).astype(np.uint8),
    TensorProto.BOOL: lambda shape, rng: rng.random(shape) < 0.5,
}


def data(proto: onnx.ModelProto, count: int = 2, **sizes: int) -> list[dict[str, np.ndarray]]:
    """Batches of the inputs' own types; free dimensions are 4 unless `sizes` names them."""
    rng = np.random.default_rng(0)
    fixed = {i.name for i in proto.graph.initializer}
    inputs = {i.name: i.type.tensor_type for i in proto.graph.input if i.name not in fixed}
    return [
        {
            name: np.asarray(
                TYPES[kind.elem_type]([d.dim_value or sizes.get(d.dim_param, 4) for d in kind.shape.dim], rng)
            )
            for name, kind in inputs.items()
        }
        for _ in range(count)
    ]


def deployed(proto: onnx.ModelProto | Path, given: list[dict[str, np.ndarray]], **settings) -> onnx.ModelProto:
    """Returns the result of insert, one training step and fold: a valid model of versions that the runtime reads."""
    trainer = Trainer(insert(proto, given, Config(**settings)), loss="distill", optimizer=AdamW(lr=1e-6))
    assert np.isfinite(trainer.step(given[0]))
    result = fold(trainer.model())
    onnx.checker.check_model(result, full_check=True)
    assert result.ir_version <= io.NEWEST_IR
    assert all(entry.version <= io.NEWEST_OPSET for entry in result.opset_import if entry.domain == "")
    return result


def stays_close(
    proto: onnx.ModelProto, result: onnx.ModelProto, batch: dict[str, np.ndarray], share: float = 0.05
) -> None:
    """Float outputs differ by less than a share of their range, the others not at all; names and order are kept."""
    assert [o.name for o in result.graph.output] == [o.name for o in proto.graph.output]
    for before, after in zip(outputs(proto, batch), outputs(result, batch), strict=True):
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        if before.size and before.dtype == np.float32:
            assert np.abs(after - before).max() <= share * np.abs(before).max()
        else:
            assert np.array_equal(after, before)


W = {"w": random(4, 4, 3, 3), "b": random(4), "v": random(4, 4, 1, 1, seed=1), "d": random(4, seed=1)}
CONVS = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v, d)"
M = {"w": random(8, 6), "b": random(6), "v": random(6, 3), "c": random(3)}

SHAPES: dict[str, onnx.ModelProto] = {
    "dynamic height and width": model(f"(float[N,4,H,W] x) => (float[N,4,H,W] y) {{ {CONVS} }}", **W),
    "shape worked out at run time": model(
        """(float[N,4,H,W] x) => (float[N,4,P,Q] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) s = Shape(r)
        nc = Slice(s, zero, two) flat = Concat<axis=0>(nc, rest) f = Reshape(r, flat) u = Reshape(f, s) y = Conv(u, v, d) }""",
        **W, zero=np.array([0]), two=np.array([2]), rest=np.array([-1]),
    ),
    "fixed batch": model(f"(float[1,4,8,8] x) => (float[1,4,8,8] y) {{ {CONVS} }}", **W),
    "several inputs and outputs": model(
        """(float[N,8] x, float[N,8] z) => (float[N,3] y, float[N,6] mid) {
        a = Gemm(x, w, b) e = Gemm(z, w, b) mid = Add(a, e) r = Relu(mid) y = Gemm(r, v, c) }""",
        **M,
    ),
    "int64 and int32 inputs": model(
        """(int64[N,5] words, int32[N,5] kinds) => (float[N,5,3] y) { a = Gather(table, words) e = Gather(table, kinds)
        s = Add(a, e) m = MatMul(s, w) r = Relu(m) y = MatMul(r, v) }""",
        table=random(4, 8), w=M["w"], v=M["v"],
    ),
    "uint8 image": model(
        f"(uint8[N,4,8,8] p) => (float[N,4,8,8] y) {{ f = Cast<to=1>(p) x = Div(f, most) {CONVS} }}",
        **W, most=np.float32(255),
    ),
    "bool mask": model(
        """(float[N,8] x, bool[N,8] keep) => (float[N,3] y) {
        k = Where(keep, x, zero) a = Gemm(k, w, b) r = Relu(a) y = Gemm(r, v, c) }""",
        **M, zero=np.float32(0),
    ),
    "shared weight": model(
        "(float[N,6] x) => (float[N,6] y) { a = Gemm(x, w, b) r = Relu(a) e = Gemm(r, w, b) q = Relu(e) y = Gemm(q, w, b) }",
        w=random(6, 6), b=random(6),
    ),
    "weight behind Identity": model(
        """(float[N,8] x) => (float[N,3] y) {
        i = Identity(w) j = Identity(i) a = Gemm(x, j, b) r = Relu(a) y = Gemm(r, v, c) }""", **M
    ),
    "weight behind Reshape and Transpose": model(
        """(float[N,8] x) => (float[N,3] y) { i = Reshape(w, shape) j = Transpose<perm=[1,0]>(i) a = MatMul(x, j)
        r = Relu(a) y = MatMul(r, v) }""",
        w=random(48), shape=np.array([6, 8]), v=M["v"],
    ),
    "weight behind Cast of double": model(
        "(float[N,8] x) => (float[N,3] y) { i = Cast<to=1>(w) a = Gemm(x, i, b) r = Relu(a) y = Gemm(r, v, c) }",
        **(M | {"w": M["w"].astype(np.float64)}),
    ),
    "weight behind Cast of fp16": model(
        "(float[N,8] x) => (float[N,3] y) { i = Cast<to=1>(w) a = Gemm(x, i, b) r = Relu(a) y = Gemm(r, v, c) }",
        **(M | {"w": M["w"].astype(np.float16)}),
    ),
    "weight scaled at run time": model(
        "(float[N,8] x) => (float[N,3] y) { i = Mul(w, k) a = Gemm(x, i, b) r = Relu(a) y = Gemm(r, v, c) }",
        **M, k=np.float32(0.5),
    ),
    "weight that Constant holds": model(
        """(float[2,2] x) => (float[2,2] y) { w = Constant<value=float[2,2] {0.5, -1.0, 0.25, 1.0}>()
        a = MatMul(x, w) y = Relu(a) }"""
    ),
    "scalar input": model(
        """(float[N,8] x, float gain) => (float[N,3] y) {
        k = Mul(x, gain) a = Gemm(k, w, b) r = Relu(a) y = Gemm(r, v, c) }""", **M
    ),
    "scalar output": model(
        """(float[N,8] x) => (float[N,3] y, float m) {
        a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) m = ReduceMean<keepdims=0>(y) }""",
        **M,
    ),
    "tensor without elements": model(
        """(float[N,8] x) => (float[N,6] y) { a = Gemm(x, w, b) none = Slice(a, zero, zero, one)
        k = Concat<axis=1>(none, a) y = Relu(k) }""",
        w=M["w"], b=M["b"], zero=np.array([0]), one=np.array([1]),
    ),
    "initializer without elements": model(
        "(float[N,8] x) => (float[N,6] y) { a = Gemm(x, w, b) k = Concat<axis=1>(a, none) y = Relu(k) }",
        w=M["w"], b=M["b"], none=np.zeros((4, 0), np.float32),
    ),
    "output that is an input": model(
        "(float[N,8] x) => (float[N,3] y, float[N,8] x) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }", **M
    ),
    "output that is an initializer": model(
        "(float[N,8] x) => (float[N,3] y, float[3] c) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }", **M
    ),
    "output that is a weight": model(
        "(float[N,8] x) => (float[N,3] y, float[6,3] v) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }", **M
    ),
    "input that no weight reads, first": model(
        """(int64[N] id, float[N,8] x) => (int64[N] same, float[N,3] y) {
        same = Identity(id) a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }""",
        **M,
    ),
    "unused input": model(
        "(float[N,8] x, int64[N] id) => (float[N,3] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }", **M
    ),
    "classes beside scores": model(
        """(float[N,8] x) => (float[N,3] y, int64[N] top) {
        a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) top = ArgMax<axis=1, keepdims=0>(y) }""",
        **M,
    ),
    "If of a constant": model(
        """(float[N,8] x) => (float[N,3] y) { a = Gemm(x, w, b)
        r = If(yes) <then_branch = t () => (float[N,6] p) { p = Relu(a) }, else_branch = e () => (float[N,6] q) { q = Neg(a) }>
        y = Gemm(r, v, c) }""",
        **M, yes=np.array(True),
    ),
    "If of a constant, around the weights": model(
        """(float[N,8] x) => (float[N,6] y) { y = If(yes) <then_branch = t () => (float[N,6] p) { g = Gemm(x, w, b) p = Relu(g) },
        else_branch = e () => (float[N,6] q) { q = Gemm(x, w, b) }> }""",
        w=M["w"], b=M["b"], yes=np.array(True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("proto", SHAPES.values(), ids=SHAPES)
def test_model_passes_all_stages_and_stays_close(proto, target):
    given = data(proto)
    stays_close(proto, deployed(proto, given, target=target), given[0])


def test_sizes_may_change_from_batch_to_batch():
    proto = SHAPES["dynamic height and width"]
    given = [data(proto, 1, N=n, H=h, W=w)[0] for n, h, w in [(4, 6, 9), (2, 12, 5), (1, 4, 4)]]
    result = deployed(proto, given)
    for batch in given:
        stays_close(proto, result, batch)


def halved(proto: onnx.ModelProto, *, whole: bool) -> onnx.ModelProto:
    """The model with weights in fp16: behind a Cast to float, or with everything in fp16."""
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    if whole:
        for value in [*result.graph.input, *result.graph.output]:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return result
    for tensor in list(result.graph.initializer):
        for node in result.graph.node:
            node.input[:] = [f"{name}_float" if name == tensor.name else name for name in node.input]
    for tensor in result.graph.initializer:
        result.graph.node.insert(
            0, helper.make_node("Cast", [tensor.name], [f"{tensor.name}_float"], to=TensorProto.FLOAT)
        )
    return result


NET = model("(float[N,8] x) => (float[N,3] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }", **M)


def test_weights_in_fp16_behind_casts_are_quantized():
    proto = halved(NET, whole=False)
    given = data(proto)
    result = deployed(proto, given)
    assert "Cast" not in operators(result)
    stays_close(proto, result, given[0])


def test_model_in_fp16_is_converted_to_float32_with_a_notice(caplog):
    proto = halved(NET, whole=True)
    given = data(NET)
    result = deployed(proto, given)
    assert "converted from float16 to float32" in caplog.text
    assert {v.type.tensor_type.elem_type for v in (*result.graph.input, *result.graph.output)} == {TensorProto.FLOAT}
    stays_close(NET, result, given[0])


def renamed(proto: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    for node, name in zip(result.graph.node, names, strict=True):
        node.name = name
    return result


@pytest.mark.parametrize("names", [["", "", ""], ["n", "n", "n"], ["Gemm", "", "Gemm"]], ids=["none", "same", "mixed"])
def test_nodes_without_a_name_of_their_own_get_one(names):
    proto = renamed(NET, names)
    given = data(proto)
    result = deployed(proto, given)
    found = [node.name for node in result.graph.node]
    assert all(found)
    assert len(set(found)) == len(found)
    stays_close(NET, result, given[0])


@pytest.mark.parametrize("ir_version", [3, 7, 10, 11])
def test_initializers_may_be_listed_as_inputs(ir_version):
    proto = onnx.ModelProto.FromString(NET.SerializeToString())
    proto.ir_version = ir_version
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    given = data(NET)
    result = deployed(proto, given)
    assert [value.name for value in result.graph.input] == ["x"]
    stays_close(NET, result, given[0])


@pytest.mark.parametrize("size", [0, 64], ids=["all of it", "large ones"])
def test_external_data_is_read_from_beside_the_model(tmp_path, size):
    proto = onnx.ModelProto.FromString(NET.SerializeToString())
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=size)
    given = data(NET)
    stays_close(NET, deployed(tmp_path / "m.onnx", given), given[0])


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 16, 21, 22, 24])
def test_every_opset_that_can_be_converted_is_deployed(opset):
    body = "(float[N,8] x) => (float[N,3] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c) }"
    proto = model(body, opset=opset, **M)
    given = data(proto)
    stays_close(NET, deployed(proto, given), given[0])


SUBGRAPHS = {
    "If": """y = If(yes) <then_branch = t () => (float[N,6] p) { p = Relu(a) },
        else_branch = e () => (float[N,6] q) { q = Neg(a) }>""",
    "Loop": """y = Loop(two, , a) <body = l (int64 i, bool go, float[N,6] q) => (bool on, float[N,6] p)
        { on = Identity(go) p = Relu(q) }>""",
}


@pytest.mark.parametrize("nodes", SUBGRAPHS.values(), ids=SUBGRAPHS)
def test_control_flow_that_data_steers_stays_in_float_and_is_deployed(nodes):
    """Post-training: gradients do not pass it."""
    yes = ", bool yes" if "yes" in nodes else ""
    two = {"two": np.array(2)} if "two" in nodes else {}
    proto = model(f"(float[N,8] x{yes}) => (float[N,6] y) {{ a = Gemm(x, w, b) {nodes} }}", w=M["w"], b=M["b"], **two)
    given = data(proto)
    result = fold(insert(proto, given))
    onnx.checker.check_model(result, full_check=True)
    stays_close(proto, result, given[0])


def test_weights_inside_control_flow_that_data_steers_are_refused():
    proto = model(
        """(float[N,8] x, bool yes) => (float[N,6] y) { y = If(yes) <then_branch = t () => (float[N,6] p) { p = Gemm(x, w, b) },
        else_branch = e () => (float[N,6] q) { q = Gemm(x, w) }> }""",
        w=M["w"],
        b=M["b"],
    )
    with pytest.raises(UnsupportedModelError, match="its layers are inside If 'If', which input 'yes' decides; fix it"):
        insert(proto, data(proto))
