"""A runtime here or in another environment: the same answers, and one clear line for what goes wrong."""

import os
import sys
import time
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxqat.errors import InputError, MissingExtraError, OnnxqatError
from onnxqat.graph import io
from onnxqat.verification import calls
from onnxqat.verification.host import opened

CONV = """
  a = Conv(xd, w1d, b1d)
  aq = QuantizeLinear(a, s, z)
  y = DequantizeLinear(aq, s, z)
"""


def on_grid(x):
    """Quantized and dequantized: uint8, scale 0.05, zero point 128."""
    return np.clip(np.rint(x / np.float32(0.05)), -128, 127) * np.float32(0.05)


@pytest.fixture
def batch():
    return {"x": np.random.default_rng(0).normal(0, 2, (3, 2, 4, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
def test_simulation_computes_what_the_graph_says(network, batch, runtime):
    model = network(CONV)
    weight = np.array([[1.0, -0.5], [0.3, 0.7]], np.float32)
    bias = np.array([0.005, -0.01], np.float32)[:, None, None]
    expected = on_grid(np.einsum("oi,nihw->nohw", weight, on_grid(batch["x"])) + bias)
    with opened(runtime) as host:
        host.load("m", io.load(model), simulate=True)
        actual = host.run("m", batch)["y"]
    # a sum that falls on a tie may round either way: one step of 0.05, in few places
    assert np.abs(actual - expected).max() <= 0.0501
    assert (np.abs(actual - expected) > 1e-6).mean() < 0.05


def test_another_interpreter_runs_its_own_runtime(network, batch, stock_python):
    with opened("ort") as here, opened("ort", stock_python) as there:
        assert here.version() == "onnxruntime 1.19.2"
        assert there.version() not in ("onnxruntime 1.19.2", "")
        here.load("m", io.load(network(CONV)))
        there.load("m", io.load(network(CONV)))
        np.testing.assert_array_equal(here.run("m", batch)["y"], there.run("m", batch)["y"])


def test_names_of_inputs_and_outputs_may_be_anything(stock_python):
    names = "in/0:a b", "file"
    node = onnx.helper.make_node("Relu", names[:1], names[1:])
    values = [onnx.helper.make_tensor_value_info(name, 1, [None]) for name in names]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    with opened("ort", stock_python) as host:
        host.load("m", io.load(model))
        output = host.run("m", {names[0]: np.array([-1, 2], np.float32)})
    assert {name: array.tolist() for name, array in output.items()} == {"file": [0, 2]}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "other interpreter"])
def test_model_that_the_runtime_refuses_is_named_with_its_reason(network, request, elsewhere):
    interpreter = request.getfixturevalue("stock_python") if elsewhere else None
    model = io.load(network("y = Add(xd, xd)"))
    model.graph[-1].op_type = "HammingWindow"
    with opened("ort", interpreter) as host, pytest.raises(InputError) as error:
        host.load("deployed", model)
    message = str(error.value)
    assert message.startswith("deployed model: onnxruntime cannot load it: ")
    assert "HammingWindow" in message
    assert "\n" not in message


def test_batch_that_the_runtime_refuses_is_named_with_its_reason(network):
    with opened("ort") as host:
        host.load("deployed", io.load(network(CONV)))
        with pytest.raises(
            InputError, match=r"deployed model: onnxruntime cannot run it on this batch: .*Got: 3 Expected: 4"
        ):
            host.run("deployed", {"x": np.zeros((1, 2, 3, 3), np.float32)})


def test_runtime_missing_in_the_other_environment_is_named_with_the_command_that_brings_it(stock_python):
    with opened("openvino", stock_python) as host, pytest.raises(MissingExtraError) as error:
        host.version()
    assert str(error.value) == (
        f"runtime 'openvino': openvino is not installed for {stock_python}; run `{stock_python} -m pip install openvino`"
    )


def test_numpy_missing_in_the_other_environment_is_named(bare_python):
    with (
        opened("ort", bare_python) as host,
        pytest.raises(MissingExtraError, match=r"numpy is not installed for .*bare"),
    ):
        host.version()


def test_missing_interpreter_is_named():
    with (
        pytest.raises(InputError, match="interpreter '/nowhere/python': cannot be started"),
        opened("ort", "/nowhere/python") as host,
    ):
        host.version()


def test_program_that_is_no_interpreter_is_named():
    with pytest.raises(OnnxqatError, match="'/bin/false': ended with status 1"), opened("ort", "/bin/false") as host:
        host.version()


def test_last_words_of_a_worker_that_dies_are_passed_on(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo Illegal instruction >&2; exit 132\n")
    program.chmod(0o755)
    with pytest.raises(OnnxqatError, match=r"status 132 .*\(Illegal instruction\)"), opened("ort", program) as host:
        host.version()


@pytest.fixture
def script(tmp_path):
    """A program in the current folder, of the lines of a shell script."""

    def make(*lines):
        program = tmp_path / "my python"
        program.write_text("\n".join(("#!/bin/sh", *lines)))
        program.chmod(0o755)
        return program

    return make


@pytest.mark.parametrize("said", ["echo Welcome", "printf 'no end of line'; echo", "echo '{\"result\": 3}'"])
def test_interpreter_that_prints_first_is_understood(script, said):
    with opened("ort", script(said, f'exec {sys.executable} "$@"')) as host:
        assert host.version() == "onnxruntime 1.19.2"


@pytest.mark.parametrize("command", ["sleep 1000", "exec sleep 1000", "yes", "exec cat /dev/zero"])
def test_program_that_does_not_answer_is_named_and_ended(script, command, monkeypatch):
    monkeypatch.setattr(calls, "STARTING_SECONDS", 0.5)
    begin = time.monotonic()
    with (
        pytest.raises(OnnxqatError, match=r"my python': has not answered within 0.5 s"),
        opened("ort", script(command)),
    ):
        pass
    assert time.monotonic() - begin < 20


def test_interpreter_in_the_current_folder_may_be_named(script, monkeypatch):
    monkeypatch.chdir(script(f'exec {sys.executable} "$@"').parent)
    for name in ("./my python", Path("./my python")):
        with opened("ort", name) as host:
            assert host.version() == "onnxruntime 1.19.2"


def test_bare_name_of_an_interpreter_is_looked_for_among_programs(script, monkeypatch):
    monkeypatch.setenv("PATH", str(script(f'exec {sys.executable} "$@"').parent), prepend=os.pathsep)
    with opened("ort", "my python") as host:
        assert host.version() == "onnxruntime 1.19.2"


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "."], ids=["empty", "NUL", "long", "folder"])
def test_name_that_no_interpreter_can_have_is_refused(name):
    with pytest.raises(InputError, match=r"interpreter .* cannot be started"), opened("ort", name):
        pass


def test_unknown_runtime_is_refused():
    with pytest.raises(InputError, match="runtime 'tflite': is not one of 'openvino', 'ort'"), opened("tflite"):
        pass


def test_this_interpreter_may_be_named_too(network):
    with opened("ort", sys.executable) as host:
        assert host.version() == "onnxruntime 1.19.2"
        host.load("m", io.load(network(CONV)))
        assert host.run("m", {"x": np.zeros((1, 2, 4, 4), np.float32)})["y"].shape == (1, 2, 4, 4)


def test_times_are_taken_in_turn(network, batch):
    with opened("ort") as host:
        host.load("a", io.load(network(CONV)))
        host.load("b", io.load(network(CONV)))
        taken = host.time(["a", "b"], batch, 0.0)
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 5, "b": 5}
    assert min(taken["a"].min(), taken["b"].min()) > 0
