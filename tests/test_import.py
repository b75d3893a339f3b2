"""Cost of importing the package, and its public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import onnxqat

HEAVY = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "openvino", "sympy", "tensorflow", "torch"}
CALL = "import sys; sys.argv[1:] = {}\nfrom onnxqat.cli import main\ntry: main()\nexcept SystemExit: pass\n"
STARTS = {
    "import": "import onnxqat",
    "help": CALL.format(["--help"]),
    "help of a command": CALL.format(["train", "--help"]),
    "help of an export": CALL.format(["export", "torch", "--help"]),
    "version": CALL.format(["--version"]),
    "no such file": CALL.format(["inspect", "nofile.onnx"]),
    "no such model to train": CALL.format(["train", "nofile.onnx", "--data", "d.npz", "-o", "o.onnx"]),
}


def loaded(code: str) -> tuple[set[str], str]:
    """Modules that a process has loaded when the code is done, and what it says on standard error."""
    shown = f"{code}\nimport sys\nprint('loaded:', *sys.modules)"
    ended = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(ended.stdout.rpartition("loaded:")[2].split()), ended.stderr


@pytest.mark.parametrize("code", STARTS.values(), ids=STARTS)
def test_nothing_heavy_loads_before_it_is_used(code):
    modules, said = loaded(code)
    assert not HEAVY & modules
    assert said in ("", "error: nofile.onnx: no such file; check the path\n")


def test_training_loads_no_framework_and_leaves_the_training_builds_own_module_to_others():
    modules, _ = loaded("import onnxqat; onnxqat.Trainer; onnxqat.insert; onnxqat.fold; onnxqat.verify")
    assert "onnxruntime" in modules
    assert not {"tensorflow", "torch", "onnxruntime.training.ortmodule"} & modules


@pytest.mark.parametrize("start", ["import", "help", "help of a command", "help of an export", "version"])
def test_import_and_help_load_about_as_many_modules_as_onnx_does(start):
    of_onnx = loaded("import onnx")[0]
    ours = loaded(STARTS[start])[0]
    assert len(ours) < 1.2 * len(of_onnx)
    assert "pydantic" not in ours


def test_every_public_name_loads_and_is_listed():
    assert set(onnxqat.__all__) <= set(dir(onnxqat))
    for name in onnxqat.__all__:
        found = getattr(onnxqat, name)
        assert getattr(found, "__name__", "").rpartition(".")[2] == name


def test_type_checkers_see_the_same_names_in_the_same_places():
    tree = ast.parse(Path(onnxqat.__file__).read_text())
    (checked,) = [part for part in tree.body if isinstance(part, ast.If)]
    imports = [part for part in checked.body if isinstance(part, ast.ImportFrom)]
    seen = {
        name.asname: f"onnxqat.{name.name}" if part.module == "onnxqat" else part.module
        for part in imports
        for name in part.names
    }
    assert seen == onnxqat._HOMES


def test_no_module_has_the_name_of_a_function_or_class():
    modules = {path.stem for path in Path(onnxqat.__file__).parent.iterdir() if not path.name.startswith("_")}
    assert [name for name in modules & onnxqat._HOMES.keys() if onnxqat._HOMES[name] != f"onnxqat.{name}"] == []


MODULES = """
import onnxqat.folding.weights as f, onnxqat.insertion.match as i, onnxqat.verification.compare as v
import onnxqat.training.gradients as t, onnxqat.autodiff.differentiate as a, onnxqat.export.torch as e
import onnxqat.data.labels as d, onnxqat.graph.edit as g, onnxqat.nncf as n
import sys
for module in (f, i, v, t, a, e, d, g, n): assert module is sys.modules[module.__name__], module
"""
FUNCTIONS = """
import onnxqat
for name in ("fold", "insert", "verify", "evaluate", "gradients", "save"):
    assert getattr(onnxqat, name).__name__ == name and callable(getattr(onnxqat, name)), name
"""


@pytest.mark.parametrize("code", [MODULES + FUNCTIONS, FUNCTIONS + MODULES], ids=["modules first", "functions first"])
def test_functions_and_the_modules_of_their_packages_are_found_in_either_order(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = onnxqat.Trainr
