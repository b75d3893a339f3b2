"""The reference of docs/reference: what is public is in it, shows an example, and says what each argument and field is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import onnxqat

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "reference" / f"{name}.md" for name in ("configuration", "python")]
DIRECTIVE = re.compile(r"^::: ([\w.]+)$(?:\n    options:\n      members: \[(.*)\])?", re.M)
MODULES = {"callbacks", "data"}


@cache
def tree(module: str) -> ast.Module | None:
    """The source of a module, not imported: frameworks may be missing."""
    path = ROOT.joinpath(*module.split("."))
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
    return ast.parse(files[0].read_text(encoding="utf-8")) if files else None


def public() -> list[str]:
    """Full names of what the pages list; the members of a module in its place."""
    names: list[str] = []
    for page in PAGES:
        for name, members in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            names += [f"{name}.{one}" for one in members.split(", ") if one] if tree(name) else [name]
    return names


def definition(name: str) -> ast.ClassDef | ast.FunctionDef:
    """The definition, which may be in another module than where users import it from."""
    module, _, own = name.rpartition(".")
    home = onnxqat._HOMES.get(own) if module == "onnxqat" else module
    source = tree(home)
    for node in source.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == own:
            return node
    for node in source.body:
        if isinstance(node, ast.ImportFrom) and own in [one.name for one in node.names]:
            return definition(f"{node.module}.{own}")
    raise AssertionError(f"{name} is not defined")


def parts(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """Arguments of a function or of a class's `__init__`, and the fields of a class."""
    if isinstance(node, ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return [one.arg for one in arguments if one.arg not in ("self", "cls")]
    makers = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    fields = [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
    return [name for name in fields + [arg for maker in makers for arg in parts(maker)] if not name.startswith("_")]


def test_every_public_name_is_in_the_reference():
    listed = {name.removeprefix("onnxqat.").removeprefix("errors.") for name in public()}
    assert set(onnxqat.__all__) - MODULES - listed == set()


@pytest.mark.parametrize("name", [name for name in public() if not re.search(r"(?<!Onnxqat)Error$", name)])
def test_public_name_shows_an_example_that_names_what_exists(name):
    found = re.findall(r"^Example:\n    ```python\n(.*?)^    ```", ast.get_docstring(definition(name)), re.M | re.S)
    assert len(found) == 1
    example = ast.parse(re.sub(r"^    ", "", found[0], flags=re.M))
    used = [
        n.attr for n in ast.walk(example) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "onnxqat"
    ]
    assert set(used) <= {*onnxqat.__all__, "keras", "torch"}


@pytest.mark.parametrize("name", public())
def test_arguments_and_fields_of_a_public_name_are_documented(name):
    node = definition(name)
    listed = set(re.findall(r"^    (\w+):", ast.get_docstring(node), re.M))
    made_elsewhere = {"qdq", "execution"} if name == "onnxqat.torch.QdqModule" else set()
    assert set(parts(node)) - made_elsewhere - listed == set()


def test_docstrings_begin_with_a_verb_or_a_noun():
    asking = re.compile(r"(What|Whatever|How|Where|When|Those|That|If)\b")
    nodes = [node for file in sorted(ROOT.glob("onnxqat/**/*.py")) for node in ast.walk(ast.parse(file.read_text()))]
    documented = [n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    assert [text for n in documented if asking.match(text := ast.get_docstring(n) or "")] == []
