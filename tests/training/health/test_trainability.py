from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxqat import insert
from onnxqat.autodiff.differentiate import blocked_text
from onnxqat.graph import io
from onnxqat.training.health.trainability import OperatorRow, obstacles, trainability


def _load(text: str, opset: int = 17) -> ir.Model:
    return io.load(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}'), oldest_opset=7)


def test_every_operator_has_a_row_with_its_count_and_why() -> None:
    model = _load(
        "(float[n,4] x) => (float[n,4] y) <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> "
        "{ a = MatMul (x, w) b = Elu (a) h = HardSwish (b) c = MatMul (h, w) s = Shape (c) d = Reshape (c, s) "
        "e = Sum (d, d) u = Unique (e) y = Add (e, u) }"
    )
    assert trainability(model) == [
        OperatorRow("MatMul", "", 2, True, "has a gradient"),
        OperatorRow("Elu", "", 1, True, "has a gradient"),
        OperatorRow("HardSwish", "", 1, True, "rewritten as differentiable operators"),
        OperatorRow("Shape", "", 1, False, "its result only steers (a shape, an index or a condition)"),
        OperatorRow("Reshape", "", 1, True, "has a gradient"),
        OperatorRow("Sum", "", 1, True, "rewritten as differentiable operators"),
        OperatorRow("Unique", "", 1, False, "which elements are equal decides how many outputs there are"),
        OperatorRow("Add", "", 1, True, "has a gradient"),
    ]


def test_nodes_in_the_way_of_a_weight_are_named_with_the_remedies() -> None:
    model = _load(
        "(float[n,2] x) => (float[n,2] y) <float[2,2] w = {1,0,0,1}> "
        "{ before = Round (x) a = MatMul (before, w) u = Unique (a) v = Unique (u) s = Shape (x) y = Reshape (v, s) }"
    )
    text = blocked_text(obstacles(model))
    assert text.startswith("the gradient cannot pass 2 node(s): Unique 'u', 'v': which elements are equal")
    assert "freeze what is upstream (w), exclude the node" in text
    assert "or replace it" in text


def test_a_node_before_all_weights_blocks_no_gradient() -> None:
    model = _load(
        "(float[4] x) => (float[n,2] y) <float[1,2] w = {1,0}, int64[2] s = {-1, 1}> "
        "{ u = Unique (x) c = Reshape (u, s) y = MatMul (c, w) }"
    )
    assert obstacles(model) == []


def test_quantizers_are_trained_and_block_no_gradient() -> None:
    float_model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[n,4] x) => (float[n,4] y) '
        "<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> { y = MatMul (x, w) }"
    )
    batch = {"x": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}
    qdq = ir.from_proto(insert(float_model, calibration=[batch]))
    rows = {row.op_type: row for row in trainability(qdq)}
    assert rows["QuantizeLinear"].reason == rows["DequantizeLinear"].reason == "part of a quantizer"
    assert rows["QuantizeLinear"].differentiable
    assert obstacles(qdq) == []


def test_an_old_model_is_judged_after_its_upgrade() -> None:
    model = _load("(float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1,1,2,2}> { y = Upsample (x, s) }", 9)
    assert ("Resize", True) in [(row.op_type, row.differentiable) for row in trainability(model)]


def test_a_thousand_nodes_take_less_than_a_second() -> None:
    operators = ["Relu", "HardSwish", "Sigmoid", "Softmax", "Exp"] * 200
    nodes = [onnx.helper.make_node(op, [f"v{i}"], [f"v{i + 1}"]) for i, op in enumerate(operators)]
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 8]) for name in ("v0", "v1000")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    model = io.load(proto)
    start = time.process_time()
    rows = trainability(model)
    assert sum(row.count for row in rows) == 1000
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("name", "text", "status", "said"),
    [
        (
            "runs",
            "(float[n,2] x) => (float[n,2] y) { y = Relu (x) }",
            0,
            "no node prevents training",
        ),
        (
            "does not load",
            "(float[1,1,3,3] x, float[1,1,2,2] w, float[1,8,2,2] o) => (float[a,b,c,d] y) { y = DeformConv (x, w, o) }",
            2,
            "ONNX Runtime cannot load it: Could not find an implementation for DeformConv(19)",
        ),
    ],
    ids=["runs", "does not load"],
)
def test_the_command_line_shows_the_table_and_says_if_the_model_cannot_be_loaded(
    name: str, text: str, status: int, said: str, tmp_path, capsys, monkeypatch
) -> None:
    from onnxqat import cli

    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> g {text}'), path)
    monkeypatch.setattr("sys.argv", ["onnxqat", "inspect", "--trainable", str(path)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    shown = capsys.readouterr()
    assert exit_.value.code == status
    assert said in shown.out + shown.err
    assert "gradient" in shown.out
