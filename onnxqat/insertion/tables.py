"""Tables of embeddings: matrices of which a Gather takes rows, quantized with a scale for each row."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Container

import numpy as np
import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.config_parts import Range
from onnxqat.graph.constants import constant
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import Spec
from onnxqat.insertion.settings import estimate_of
from onnxqat.insertion.sites import WeightSite

log = logging.getLogger(__name__)

#: Shortest rows that are worth a scale of their own.
SHORTEST_ROW = 16


def table_sites(graph: ir.Graph, taken: Container[ir.Value], config: Config) -> list[WeightSite]:
    """One site for each table, where the configuration asks for it; tables in `taken` have a quantizer already.

    A table that other nodes read too stays in float, which is said: its codes would only add to it.
    """
    bits = config.embedding_bits
    if bits is None:
        return []
    given = config.weight_range or Range(type="min_max" if bits == 8 else "mse")
    spec, estimate = Spec(bits, narrow=bits == 8, axis=0), estimate_of(given, config.percentile)
    sites = []
    for table, readers in _tables(graph, config).items():
        foreign = [use.node for use in table.uses() if use.node not in readers]
        if foreign or table in taken:
            reason = f"{label(foreign[0])} reads it too" if foreign else "values that come from it are quantized"
            log.warning("embedding_bits: table %r stays in float, since %s", table.name, reason)
        else:
            sites.append(WeightSite(table, spec, estimate, tuple(readers)))
    return sites


def _tables(graph: ir.Graph, config: Config) -> dict[ir.Value, list[ir.Node]]:
    """Tables, with the nodes that take rows of them."""
    found: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in graph:
        table = node.inputs[0] if node.op_type == "Gather" else None
        array = constant(table)
        if (
            table is None
            or array is None
            or node.attributes.get_int("axis", 0) != 0
            or constant(node.inputs[1]) is not None
        ):
            continue
        wide = array.dtype == np.float32 and array.ndim == 2 and array.shape[1] >= SHORTEST_ROW
        if wide and not any(rule.matches(node) for rule in config.ignore):
            found[table].append(node)
    return found
