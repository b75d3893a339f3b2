from __future__ import annotations

import importlib
import pkgutil

import onnx
import onnx_ir as ir
import pytest

from onnxqat.autodiff import rules
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


def test_what_is_not_standard_is_refused() -> None:
    rule = rule_for(ir.Node("elsewhere", "Odd", []), {})
    assert rule.reason == "no gradient is known for this operator"


def test_the_table_is_the_rules_of_every_family_file_so_that_a_new_operator_is_a_row_there_alone() -> None:
    names = {module.name for module in pkgutil.iter_modules(rules.__path__)} - {"table"}
    families = [importlib.import_module(f"onnxqat.autodiff.rules.{name}") for name in sorted(names)]
    rows = [row for family in families for row in family.RULES]
    assert sorted(rows) == sorted(name for _, name in TABLE)
    assert len(rows) == len(set(rows)), "an operator that is in two families"
