from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from onnxqat import gradients
from onnxqat.errors import UnsupportedModelError
from onnxqat.runtime import run_exactly
from tests.autodiff.rules.against_torch import assert_matches_torch, model, normal
from tools.gradient_check.check import check_gradients

_T, _N, _I, _H = 5, 3, 4, 6
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}  # ONNX's gates in PyTorch's numbering
_EXTRA = {"LSTM": "", "GRU": "linear_before_reset=1, ", "RNN": ""}


def _feeds(operator: str, directions: int) -> dict[str, np.ndarray]:
    rows = _GATES[operator] * _H
    feeds = {
        "x": normal(_T, _N, _I),
        "w": normal(directions, rows, _I, seed=1) * 0.5,
        "r": normal(directions, rows, _H, seed=2) * 0.5,
        "b": normal(directions, 2 * rows, seed=3),
        "h": normal(directions, _N, _H, seed=4),
    }
    return feeds | ({"c": normal(directions, _N, _H, seed=5)} if operator == "LSTM" else {})


def _proto(operator: str, direction: str, outputs: str, lengths: bool = False) -> onnx.ModelProto:
    names = ["x", "w", "r", "b", "n" if lengths else "", "h"] + (["c"] if operator == "LSTM" else [])
    inputs = "float[t,n,i] x, float[d,g,i2] w, float[d,g2,k] r, float[d,g3] b, float[d,n,k] h"
    inputs += ", float[d,n,k] c" if operator == "LSTM" else ""
    inputs += ", int32[n] n" if lengths else ""
    types = {"y": "float[t,d,n,k] y", "yh": "float[d,n,k] yh", "yc": "float[d,n,k] yc"}
    shown = ", ".join(types[name] for name in outputs.split(",") if name)
    return model(
        f"({inputs}) => ({shown}) {{ {outputs} = {operator} "
        f'<hidden_size={_H}, {_EXTRA[operator]}direction="{direction}"> ({",".join(names)}) }}'
    )


def _weights(operator: str, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Weights of one layer as PyTorch's functional form takes them, differentiable in ONNX's."""
    order = np.argsort(_ORDER[operator])
    flat = []
    for d in range(len(w)):
        wb, rb = b[d].chunk(2)
        for tensor in (w[d], r[d], wb, rb):
            parts = tensor.chunk(_GATES[operator])
            flat.append(torch.cat([parts[_ORDER[operator].index(i)] for i in range(len(order))]))
    return flat


def _torch(operator: str, reverse: bool = False, lengths: list[int] | None = None) -> object:
    def function(**t: torch.Tensor) -> list[torch.Tensor]:
        directions = len(t["w"])
        flat = _weights(operator, t["w"], t["r"], t["b"])
        x = t["x"].flip(0) if reverse else t["x"]
        state = (t["h"], t["c"]) if operator == "LSTM" else t["h"]
        run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[operator]
        if lengths is None:
            y, *last = run(x, state, flat, True, 1, 0.0, False, directions == 2, False)
        else:
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=True)
            y, *last = run(packed.data, packed.batch_sizes, state, flat, True, 1, 0.0, False, directions == 2)
            packed = torch.nn.utils.rnn.PackedSequence(y, packed.batch_sizes)
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, total_length=len(x))
        y = y.flip(0) if reverse else y
        return [y.reshape(len(y), y.shape[1], directions, _H).transpose(1, 2), *last]

    return function


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_gradients_of_all_inputs_are_torchs(operator: str, direction: str) -> None:
    outputs = "y,yh,yc" if operator == "LSTM" else "y,yh"
    feeds = _feeds(operator, 2 if direction == "bidirectional" else 1)
    assert_matches_torch(
        _proto(operator, direction, outputs), feeds, _torch(operator, direction == "reverse"), tolerance=1e-4
    )


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_sequences_of_different_lengths_are_torchs_packed_sequences(operator: str, direction: str) -> None:
    outputs = "y,yh,yc" if operator == "LSTM" else "y,yh"
    lengths = [5, 3, 1]
    feeds = _feeds(operator, 2 if direction == "bidirectional" else 1)
    function = _torch(operator, lengths=lengths)
    assert_matches_torch(
        _proto(operator, direction, outputs, lengths=True),
        feeds | {"n": np.array(lengths, np.int32)},
        lambda n, **tensors: function(**tensors),
        list(feeds),
        tolerance=1e-4,
    )


def test_the_last_state_alone_may_be_used() -> None:
    function = _torch("GRU")
    assert_matches_torch(
        _proto("GRU", "forward", ",yh"), _feeds("GRU", 1), lambda **t: function(**t)[1], tolerance=1e-4
    )


def _check(operator: str, attributes: str, peepholes: bool = False) -> None:
    """Checks by finite differences what PyTorch does not have."""
    rows = _GATES[operator] * _H
    inputs = f"float[{_T},{_N},{_I}] x, float[1,{rows},{_I}] w, float[1,{rows},{_H}] r, float[1,{2 * rows}] b"
    inputs += f", float[1,{3 * _H}] p" if peepholes else ""
    names = "x,w,r,b,,,,p" if peepholes else "x,w,r,b"
    proto = model(
        f"({inputs}) => (float[{_T},1,{_N},{_H}] y, float[1,{_N},{_H}] yh) "
        f"{{ y, yh = {operator} <hidden_size={_H}, {attributes}> ({names}) }}"
    )
    feeds = {name: value for name, value in _feeds(operator, 1).items() if name in "xwrb"}
    feeds |= {"p": normal(1, 3 * _H, seed=6)} if peepholes else {}
    # ONNX's reference evaluator knows neither clip nor input_forget, so ONNX Runtime's outputs are what counts.
    verdict = check_gradients(proto, feeds, run_exactly(proto, feeds))
    assert verdict.outcome == "correct", verdict.reason


def test_peepholes_have_gradients() -> None:
    _check("LSTM", 'direction="forward"', peepholes=True)


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_what_is_clipped_has_no_gradient(operator: str) -> None:
    _check(operator, "clip=0.7")


@pytest.mark.parametrize("attributes", ["linear_before_reset=0", 'linear_before_reset=0, direction="reverse"'])
def test_gru_may_reset_before_the_recurrence_weights(attributes: str) -> None:
    _check("GRU", attributes)


def test_gru_of_unknown_sizes_may_reset_before_the_recurrence_weights() -> None:
    proto = _proto("GRU", "forward", "y,yh")
    attribute = next(a for a in proto.graph.node[0].attribute if a.name == "linear_before_reset")
    attribute.i = 0
    feeds = _feeds("GRU", 1)

    def function(**t: torch.Tensor) -> list[torch.Tensor]:
        (w_z, w_r, w_n), (r_z, r_r, r_n) = t["w"][0].chunk(3), t["r"][0].chunk(3)
        z_w, r_w, n_w, z_r, r_r2, n_r = t["b"][0].chunk(6)
        states = [t["h"][0]]
        for x in t["x"]:
            h = states[-1]
            z = torch.sigmoid(x @ w_z.T + h @ r_z.T + z_w + z_r)
            r = torch.sigmoid(x @ w_r.T + h @ r_r.T + r_w + r_r2)
            states.append((1 - z) * torch.tanh(x @ w_n.T + (r * h) @ r_n.T + n_w + n_r) + z * h)
        return [torch.stack(states[1:]).unsqueeze(1), states[-1].unsqueeze(0)]

    assert_matches_torch(proto, feeds, function, tolerance=1e-4)


def test_lstm_may_couple_its_input_and_forget_gates() -> None:
    _check("LSTM", "input_forget=1")


_FUNCTIONS = {
    '["Relu"]': torch.relu,
    '["Affine"], activation_alpha=[0.3], activation_beta=[0.1]': lambda a: 0.3 * a + 0.1,
    '["LeakyRelu"], activation_alpha=[0.2]': lambda a: F.leaky_relu(a, 0.2),
    '["ThresholdedRelu"], activation_alpha=[0.5]': lambda a: F.threshold(a, 0.5, 0.0),
    '["ScaledTanh"], activation_alpha=[0.8], activation_beta=[0.6]': lambda a: 0.8 * torch.tanh(0.6 * a),
    '["HardSigmoid"], activation_alpha=[0.25], activation_beta=[0.4]': lambda a: torch.clamp(0.25 * a + 0.4, 0, 1),
    '["Elu"], activation_alpha=[0.7]': lambda a: F.elu(a, 0.7),
    '["Softsign"]': F.softsign,
    '["Softplus"]': F.softplus,
    '["Sigmoid"]': torch.sigmoid,
}


@pytest.mark.parametrize("attribute", _FUNCTIONS)
def test_every_activation_function_has_a_slope(attribute: str) -> None:
    proto = model(
        f"(float[{_T},{_N},{_I}] x, float[1,{_H},{_I}] w, float[1,{_H},{_H}] r, float[1,{2 * _H}] b) "
        f"=> (float[{_T},1,{_N},{_H}] y) {{ y = RNN <hidden_size={_H}, activations={attribute}> (x,w,r,b) }}"
    )
    feeds = {name: value for name, value in _feeds("RNN", 1).items() if name in "xwrb"}

    def function(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        states = [torch.zeros(_N, _H)]
        for now in x:
            states.append(_FUNCTIONS[attribute](now @ w[0].T + states[-1] @ r[0].T + b[0, :_H] + b[0, _H:]))
        return torch.stack(states[1:]).unsqueeze(1)

    assert_matches_torch(proto, feeds, function, tolerance=1e-4)


def test_batch_first_layout_is_differentiated_by_transposing() -> None:
    rows = 4 * _H
    proto = model(
        f"(float[n,t,{_I}] x, float[1,{rows},{_I}] w, float[1,{rows},{_H}] r) => (float[n,t,1,{_H}] y, float[n,1,{_H}] yh) "
        f"{{ y, yh = LSTM <hidden_size={_H}, layout=1> (x,w,r) }}"
    )
    feeds = {name: value for name, value in _feeds("LSTM", 1).items() if name in "xwr"}
    feeds["x"] = feeds["x"].transpose(1, 0, 2).copy()
    function = _torch("LSTM")

    def batch_first(x: torch.Tensor, w: torch.Tensor, r: torch.Tensor) -> list[torch.Tensor]:
        zero = torch.zeros(1, _N, _H)
        y, h, _ = function(x=x.transpose(0, 1), w=w, r=r, b=torch.zeros(1, 2 * rows), h=zero, c=zero)
        return [y.permute(2, 0, 1, 3), h.transpose(0, 1)]

    assert_matches_torch(proto, feeds, batch_first, tolerance=1e-4)


def test_an_unknown_activation_function_is_refused() -> None:
    proto = model(
        f"(float[2,1,3] x, float[1,{_H},3] w, float[1,{_H},{_H}] r) => (float[2,1,1,{_H}] y) "
        f'{{ y = RNN <hidden_size={_H}, activations=["Gelu"]> (x,w,r) }}'
    )
    with pytest.raises(UnsupportedModelError, match="Gelu is unknown"):
        gradients(proto, {"x": normal(2, 1, 3), "w": normal(1, _H, 3), "r": normal(1, _H, _H)}, ["w"])
