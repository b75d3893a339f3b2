from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxqat.autodiff import rules
from onnxqat.autodiff.rules.refusals import REFUSED, STOPPED
from onnxqat.autodiff.rules.table import TABLE, rule_for
from onnxqat.graph.io import NEWEST_OPSET

_STANDARD = sorted(
    {
        schema.name
        for schema in onnx.defs.get_all_schemas_with_history()
        if schema.domain == "" and schema.since_version <= NEWEST_OPSET
    }
)


@pytest.mark.parametrize("operator", _STANDARD)
def test_every_standard_operator_has_a_rule(operator: str) -> None:
    assert ("", operator) in TABLE


def test_every_rule_belongs_to_a_standard_operator() -> None:
    newer = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert {name for domain, name in TABLE if domain == ""} <= newer


def test_an_operator_that_has_a_gradient_is_in_no_list_of_those_that_have_none() -> None:
    lists = STOPPED.keys() | REFUSED.keys()
    assert [name for name in lists if TABLE["", name] not in (STOPPED.get(name), REFUSED.get(name))] == []
    assert not STOPPED.keys() & REFUSED.keys()


def test_what_is_not_standard_is_refused() -> None:
    rule = rule_for(ir.Node("elsewhere", "Odd", []))
    assert rule.reason == "no gradient is known for this operator"


def test_every_family_file_is_used_by_the_table() -> None:
    table = Path(rules.__path__[0], "table.py").read_text(encoding="utf-8")
    families = {module.name for module in pkgutil.iter_modules(rules.__path__)} - {"table"}
    for name in families:
        importlib.import_module(f"onnxqat.autodiff.rules.{name}")
    assert [name for name in sorted(families) if f"{name}." not in table] == []
