"""Layers around the branches of `If` and the bodies of `Loop`: what reads a value inside counts as a reader."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.cli.inspection import quantization_table
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph import io
from tests.models import model, outputs, random

LAYERS = {"w": random(4, 4, 3, 3), "b": random(4), "v": random(4, 4, 1, 1, seed=1)}
CONSTANTS = {
    "lo": np.float32(0),
    "hi": np.float32(3),
    "pads": np.array([0, 0, 0, 0, 0, 0, 1, 1]),
    "sizes": np.array([1, 1, 2, 2], np.float32),
    "six": np.float32(6),
    "three": np.float32(3),
}
CONV = "a = Conv<pads=[1,1,1,1]>(x, w, b)"
INSIDE = {
    "relu": (CONV, "p = Relu(a)"),
    "clip": (CONV, "p = Clip(a, lo, hi)"),
    "relu and minimum": (f"{CONV} r = Relu(a)", "p = Min(r, hi)"),
    "pooling and padding": (CONV, "m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(a) p = Pad(m, pads)"),
    "resize": (CONV, 'p = Resize<mode="nearest">(a, , sizes)'),
    "half of a hard swish": (f"{CONV} t = Add(a, three) k = Clip(t, lo, six)", "m = Mul(a, k) p = Div(m, six)"),
    "convolution": (CONV, "r = Relu(a) p = Conv(r, v)"),
    "nested": (
        CONV,
        "p = If(c) <then_branch = s () => (float[N,P,Q,R] i) { i = Relu(a) }, "
        "else_branch = f () => (float[N,P,Q,R] j) { j = Identity(a) }>",
    ),
    "the value itself": (CONV, "p = Identity(a)"),
}


def branching(before: str, inside: str, otherwise: str = "x") -> onnx.ModelProto:
    body = (
        f"(float[N,4,8,8] x, bool c) => (float[N,P,Q,R] y) {{ {before} "
        f"y = If(c) <then_branch = t () => (float[N,P,Q,R] p) {{ {inside} }}, "
        f"else_branch = e () => (float[N,P,Q,R] q) {{ q = Identity({otherwise}) }}> }}"
    )
    names = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return model(body, **{name: array for name, array in (LAYERS | CONSTANTS).items() if name in names})


def data(*conditions: bool) -> list[dict[str, np.ndarray]]:
    return [{"x": random(2, 4, 8, 8, seed=i, scale=1.0), "c": np.array(c)} for i, c in enumerate(conditions)]


def check_alike(proto: onnx.ModelProto, made: onnx.ModelProto, batch: dict[str, np.ndarray]) -> None:
    onnx.checker.check_model(made)
    for want, got in zip(outputs(proto, batch), outputs(made, batch), strict=True):
        assert np.abs(want - got).max() < 0.03 * np.abs(want).max()


@pytest.mark.parametrize(("before", "inside"), INSIDE.values(), ids=INSIDE)
def test_layer_that_only_a_branch_reads_is_quantized_rightly(before, inside):
    proto = branching(before, inside)
    given = data(True, False)
    qdq = onnxqat.insert(proto, given)
    for batch in given:
        check_alike(proto, qdq, batch)
        check_alike(proto, onnxqat.fold(qdq), batch)


def test_branches_that_return_the_same_outer_value_are_read_and_quantized():
    proto = branching(CONV, "p = Identity(a)", otherwise="a")
    given = data(True, False)
    assert quantization_table(io.load(proto))
    qdq = onnxqat.insert(proto, given)
    assert quantization_table(io.load(qdq))
    for batch in given:
        check_alike(proto, qdq, batch)


def test_bias_added_inside_a_branch_stays_there():
    proto = model(
        """(float[N,8] x, bool c) => (float[N,6] y) { a = MatMul(x, w) y = If(c) <
        then_branch = t () => (float[N,6] p) { p = Add(a, b) }, else_branch = e () => (float[N,6] q) { q = Identity(a) }> }""",
        w=random(8, 6),
        b=random(6),
    )
    given = [{"x": random(4, 8, seed=i), "c": np.array(i == 0)} for i in range(2)]
    deployed = onnxqat.fold(onnxqat.insert(proto, given))
    for batch in given:
        check_alike(proto, deployed, batch)


def test_layer_that_a_loop_reads_is_quantized_rightly():
    ends = "(int64 i, bool k, float[N,4,8,8] s) => (bool o, float[N,4,8,8] u)"
    body = f"body = g {ends} {{ o = Identity(k) r = Relu(a) u = Add(s, r) }}"
    proto = model(
        f"""(float[N,4,8,8] x) => (float[N,4,8,8] y) {{ {CONV} n = Constant<value=int64 {{2}}>() t = Constant<value=bool {{1}}>()
        y = Loop(n, t, a) <{body}> }}""",
        w=LAYERS["w"],
        b=LAYERS["b"],
    )
    given = [{"x": batch["x"]} for batch in data(True, True)]
    check_alike(proto, onnxqat.fold(onnxqat.insert(proto, given)), given[0])


def test_training_passes_by_a_branch_that_reads_a_quantized_value():
    proto = model(
        f"""(float[N,4,8,8] x, bool c) => (float[N,4,8,8] y, float[N,4,8,8] z) {{ {CONV} r = Relu(a) y = Conv(r, v)
        z = If(c) <then_branch = t () => (float[N,4,8,8] p) {{ p = Neg(r) }}, else_branch = e () => (float[N,4,8,8] q)
        {{ q = Identity(r) }}> }}""",
        **LAYERS,
    )
    given = data(True, False)
    trainer = onnxqat.Trainer(onnxqat.insert(proto, given), loss="mse", optimizer=onnxqat.AdamW(lr=1e-5))
    label = outputs(proto, given[0])[0]
    assert trainer.step({**given[0], "label": label}) < 1e-2
    check_alike(proto, trainer.model(), given[1])


NETWORK = "h = Gemm(x, k, g) r = Relu(h) {} = Gemm(r, m, n)"
NETWORK_WEIGHTS = {"k": random(8, 6), "g": random(6), "m": random(6, 3), "n": random(3)}


def switched(condition: str, takes: str) -> onnx.ModelProto:
    """A network in one branch of an If that an input decides."""
    return model(
        f"""(float[N,8] x, {takes}) => (float[N,3] y) {{ {condition}
        y = If(c) <then_branch = t () => (float[N,3] p) {{ s = MatMul(x, k) u = Neg(s) p = MatMul(u, m) }},
        else_branch = e () => (float[N,3] q) {{ {NETWORK.format("q")} }}> }}""",
        **NETWORK_WEIGHTS,
    )


TRAINING = switched("", "bool c")
MODE = switched("one = Constant<value=int64 {1}>() c = Equal(mode, one)", "int64 mode")
ROWS = [{"x": random(16, 8, seed=seed, scale=1)} for seed in range(3)]


@pytest.mark.parametrize(
    ("proto", "name", "value"), [(TRAINING, "c", False), (MODE, "mode", 0)], ids=["flag", "number"]
)
def test_network_inside_a_branch_is_quantized_once_the_input_is_fixed(proto, name, value):
    given = [{**batch, name: np.array(value)} for batch in ROWS]
    with pytest.raises(
        UnsupportedModelError, match=rf"inside If .*, which input '{name}' decides; fix it \(--fix-input {name}="
    ):
        onnxqat.insert(proto, given)
    qdq = onnxqat.insert(proto, given, onnxqat.Config(fixed_inputs={name: value}))
    assert [value.name for value in qdq.graph.input] == ["x"]
    trainer = onnxqat.Trainer(qdq, loss="distill")
    trainer.step(given[0])  # data may go on to hold the input
    trainer.step(ROWS[0])
    want, got = outputs(proto, given[1])[0], outputs(onnxqat.fold(trainer.model()), ROWS[1])[0]
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()


def test_command_line_fixes_an_input(tmp_path):
    onnx.save(TRAINING, tmp_path / "float.onnx")
    np.savez(tmp_path / "data.npz", x=random(32, 8, scale=1), label=np.arange(32) % 3)
    arguments = ["run", "float.onnx", "--data", "data.npz", "-o", "int8.onnx", "--epochs", "1", "--max-drop", "1"]
    call = [sys.executable, "-m", "onnxqat", *arguments, "--fix-input", "c=false"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [value.name for value in onnx.load(tmp_path / "int8.onnx").graph.input] == ["x"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"z": 1}, "the model has no such input; it takes 'x', 'c'"),
        ({"c": 0.5}, "is bool of shape"),
        ({"x": 1}, "give a value of that type, as a list where sizes are free"),
        ({"c": [True]}, r"has shape \[1\], not \[\]"),
    ],
    ids=["unknown", "type", "free size", "shape"],
)
def test_value_that_does_not_fit_an_input_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        onnxqat.insert(TRAINING, ROWS, onnxqat.Config(fixed_inputs=values))


def test_network_inside_a_branch_that_data_decides_is_named():
    proto = switched("a = ReduceSum<keepdims=0>(x) z = Constant<value=float {0.}>() c = Greater(a, z)", "float[N,8] w")
    given = [{"x": batch["x"], "w": batch["x"]} for batch in ROWS]
    with pytest.raises(UnsupportedModelError, match="whose condition is computed from the data"):
        onnxqat.insert(proto, given)


STATE = "(float[4,6] s, float[4,6] g) => (float[4,6] u, float[4,6] o) { r = Add(s, g) u = Tanh(r) o = Identity(u) }"
MOVED = {
    "a slice": "m = Slice(h, first, third, first)",
    "one part": "m, rest = Split<axis=0>(h, parts)",
    "turned twice": "t = Transpose<perm=[1,0,2]>(h) m = Transpose<perm=[1,0,2]>(t)",
}


@pytest.mark.parametrize("movement", MOVED.values(), ids=MOVED)
def test_scan_over_moved_values_is_left_running(movement):
    constants = {"first": np.array([0]), "third": np.array([2]), "parts": np.array([2, 1])}
    proto = model(
        f"""(float[3,4,8] x) => (float[4,6] z) {{ h = MatMul(x, k) {movement}
        y, all = Scan<num_scan_inputs=1, body = step {STATE}>(start, m) z = MatMul(y, v) }}""",
        k=LAYERS_OF_ROWS["k"],
        v=LAYERS_OF_ROWS["v"],
        start=np.zeros((4, 6), np.float32),
        **{name: array for name, array in constants.items() if f", {name}" in movement},
    )
    given = [{"x": random(3, 4, 8, seed=seed, scale=1)} for seed in range(3)]
    check_alike(proto, onnxqat.fold(onnxqat.insert(proto, given)), given[0])


LAYERS_OF_ROWS = {"k": random(8, 6), "v": random(6, 6, seed=1), "r": random(6, 6, seed=5)}
UNROLLED = {
    "by gathering": "a0 = Gather(h, n0) a1 = Gather(h, n1)",
    "by slices": "s0 = Slice(h, one0, one1, one0) a0 = Squeeze(s0, one0) s1 = Slice(h, one1, two, one0) a1 = Squeeze(s1, one0)",
    "by a split": "s0, s1 = Split<axis=0>(h, ones) a0 = Squeeze(s0, one0) a1 = Squeeze(s1, one0)",
}


@pytest.mark.parametrize("steps", UNROLLED.values(), ids=UNROLLED)
def test_loop_that_was_unrolled_as_advised_trains(steps):
    constants = {
        "n0": np.array(0),
        "n1": np.array(1),
        "one0": np.array([0]),
        "one1": np.array([1]),
        "two": np.array([2]),
        "ones": np.array([1, 1]),
    }
    proto = model(
        f"""(float[2,4,8] x) => (float[4,6] y) {{ h = MatMul(x, k) {steps} q0 = Tanh(a0) p0 = MatMul(q0, r)
        t1 = Add(p0, a1) q1 = Tanh(t1) y = MatMul(q1, v) }}""",
        **LAYERS_OF_ROWS,
        **{name: array for name, array in constants.items() if f", {name}" in steps},
    )
    given = [{"x": random(2, 4, 8, seed=seed, scale=1)} for seed in range(3)]
    trainer = onnxqat.Trainer(onnxqat.insert(proto, given), loss="distill", optimizer=onnxqat.AdamW(lr=1e-5))
    trainer.step(given[0])
    check_alike(proto, onnxqat.fold(trainer.model()), given[0])
