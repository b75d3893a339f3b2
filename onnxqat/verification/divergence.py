"""Finds where a deployed model begins to differ from its Q/DQ model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxqat.graph.naming import name_of
from onnxqat.verification import models
from onnxqat.verification.host import Arrays, Host
from onnxqat.verification.rows import one_row

#: Codes differ by whole numbers: more than one step apart is two, whatever rounding the subtraction adds.
MORE_THAN_ONE_STEP = 1.5


@dataclass(frozen=True)
class Divergence:
    """The first intermediate value that differs by more than one step, on the sample whose output differs most.

    Attributes:
        value: name of the value in both models; None where no value before the output differs so much.
        node: name of the node that computes it.
        op_type: that node's operator.
        steps: largest difference, in steps of the value's quantizer.
        compared: how many intermediate values the two models have in common by name.
        undisturbed: whether the deployed model gave the same outputs while its intermediate values were being read.
    """

    value: str | None
    node: str | None
    op_type: str | None
    steps: float
    compared: int
    undisturbed: bool


def divergence(host: Host, trained: ir.Model, deployed: ir.Model, worst: tuple[Arrays, int | None]) -> Divergence:
    """Compares what the quantizers of both models give on the sample that differs most, in order of execution.

    Reading the value behind a quantizer leaves integer kernels as they are: the runtime gives the reader a DequantizeLinear
    of its own.
    """
    inputs = one_row(*worst, deployed)
    of_trained = models.probes(trained)
    common = {name: q for name, q in models.probes(deployed).items() if name in of_trained}
    before = host.run("deployed", inputs)
    host.load("trained", models.with_outputs(trained, common), simulate=True)
    host.load("deployed", models.with_outputs(deployed, common))
    expected, actual = host.run("trained", inputs), host.run("deployed", inputs)
    undisturbed = all(np.array_equal(before[name], actual[name]) for name in before)
    for name, quantizer in common.items():
        if expected[name].shape != actual[name].shape:
            continue  # a consequence of decisions before it
        steps = float(np.abs(expected[name] - actual[name]).max(initial=0)) / float(quantizer.scales.max())
        if steps > MORE_THAN_ONE_STEP:
            node = quantizer.source.producer()
            origin = (None, None) if node is None else (name_of(node), node.op_type)
            return Divergence(name, origin[0], origin[1], steps, len(common), undisturbed)
    return Divergence(None, None, None, 0.0, len(common), undisturbed)
