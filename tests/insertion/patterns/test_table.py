import importlib
import pkgutil

import pytest

from onnxqat.insertion import patterns
from onnxqat.targets import TARGETS

FILES = [module.name for module in pkgutil.iter_modules(patterns.__path__)]


@pytest.mark.parametrize("name", FILES)
def test_every_pattern_file_has_rows_of_its_own_in_the_table(name):
    module = importlib.import_module(f"onnxqat.insertion.patterns.{name}")
    assert hasattr(module, "find_wholes") or all(
        patterns.MATCHERS[row] is match for row, match in module.MATCHERS.items()
    )


@pytest.mark.parametrize("name", FILES)
def test_every_pattern_file_has_its_tests(name):
    importlib.import_module(f"tests.insertion.patterns.test_{name}")


@pytest.mark.parametrize("name", TARGETS)
def test_every_operator_of_a_target_has_a_pattern(name):
    assert TARGETS[name].operators.kernels <= set(patterns.MATCHERS)


@pytest.mark.parametrize("operator", patterns.MATCHERS)
def test_every_pattern_is_of_use_to_a_target(operator):
    assert any(operator in table.operators.kernels for table in TARGETS.values())


@pytest.mark.parametrize("name", TARGETS)
def test_an_operator_plays_one_part_on_a_target(name):
    known = TARGETS[name].operators
    parts = [known.weighted, known.integer, known.passes, known.repeats, known.joins, known.absorbs]
    assert sum(map(len, parts)) == len(frozenset().union(*parts))
