"""Checks a model and a configuration against what a target takes, before anything is calibrated."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxqat.config import Config
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph.naming import label
from onnxqat.graph.qdq import WIDE
from onnxqat.graph.sizes import fix_sizes, free_sizes
from onnxqat.graph.types import infer
from onnxqat.targets import Target


def settled(config: Config, target: Target) -> Config:
    """The configuration, with what the target leaves no choice about.

    Raises:
        InputError: it asks for what the target does not run.
    """
    for problem in _problems(config, target):
        raise InputError(f"configuration: {problem}")
    fixed = {} if target.x86.adds_pairs else {"overflow_fix": "disable"}
    return config.model_copy(update=fixed | ({"quantize_activations": False} if target.weights.only else {}))


def _problems(config: Config, target: Target) -> Iterator[str]:
    yield from _of_widths(config, target)
    if config.has_float8:
        yield from _of_float8(config, target)
    yield from _of_blocks(config, target)
    if target.weights.only and any(one.quantize_activations for one in config.overrides):
        yield f"quantize_activations is set in a rule, and {target.title} has no kernel that quantizes any; leave it out"
    if target.limits.symmetric_only:
        yield from _asymmetric(config, target)
    if target.placement.whole:
        yield from _of_weights(config, target)


def _of_widths(config: Config, target: Target) -> Iterator[str]:
    widths = [config.activation_bits, *(o.activation_bits for o in config.overrides if o.activation_bits is not None)]
    for bits in widths:
        if bits not in target.widths.taken:
            yield f"activation_bits is {bits}, and {target.title} runs activations of {_listed(target)} bits; leave it out"
    if config.sixteen is not None and WIDE not in target.widths.taken - target.widths.simulated:
        yield (
            f"sixteen is {config.sixteen}, and {target.title} has no kernels for activations of 16 bits; leave it out, or choose "
            "the target qnn"
        )


def _of_weights(config: Config, target: Target) -> Iterator[str]:
    """Of a target that takes every value as integers."""
    for name in ("weight_block_size", "embedding_bits"):
        if getattr(config, name) or any(getattr(one, name, None) for one in config.overrides):
            yield f"{name} is set, and {target.title} would leave such weights to the CPU; leave it out"
    yield from _per_channel(config, target)
    if False in (config.weight_symmetric, *(one.weight_symmetric for one in config.overrides)):
        yield f"weight_symmetric is false, and {target.title} takes weights with zero point 0; leave it out"


def _of_float8(config: Config, target: Target) -> Iterator[str]:
    types = config.weight_type, config.activation_type
    if target.float8 is None:
        yield f"a type of codes is fp8, and {target.title} has no kernels for that; leave it out, or choose the target tensorrt"
    if types != ("fp8", "fp8"):
        fact = f"weight_type is {types[0]} and activation_type {types[1]}"
        yield f"{fact}, and kernels multiply fp8 by fp8 alone; give both"
    widths = [config.weight_bits, config.activation_bits]
    widths += [bits for one in config.overrides for bits in (one.weight_bits, one.activation_bits) if bits is not None]
    if any(bits != 8 for bits in widths) or config.embedding_bits is not None:
        yield "a type of codes is fp8, which has 8 bits, and others are asked for; leave them out"


def _of_blocks(config: Config, target: Target) -> Iterator[str]:
    if target.placement.whole:  # it says so of all weights that it leaves to the CPU
        return
    asked = {config.weight_block_size, *(one.weight_block_size or 0 for one in config.overrides)} - {0}
    for size in sorted(asked - target.weights.block_sizes):
        taken = " or ".join(map(str, sorted(target.weights.block_sizes)))
        fact = f"takes blocks of {taken}; choose one of these, or leave it out" if taken else "takes none; leave it out"
        yield f"weight_block_size is {size}, and {target.title} {fact}"


def _asymmetric(config: Config, target: Target) -> Iterator[str]:
    for name in ("weight_symmetric", "activation_symmetric"):
        if False in (getattr(config, name), *(getattr(one, name) for one in config.overrides)):
            yield f"{name} is false, and {target.title} takes zero points of 0 alone; leave it out"
    yield from _per_channel(config, target)


def _per_channel(config: Config, target: Target) -> Iterator[str]:
    granularity = [config.activation_granularity, *(o.activation_granularity for o in config.overrides)]
    if "per_channel" in granularity:
        yield f"activation_granularity is per_channel, and {target.title} takes one scale per tensor; leave it out"


def _listed(target: Target) -> str:
    bits = sorted(target.widths.taken)
    is_range = len(bits) > 1 and bits == list(range(bits[0], bits[-1] + 1))
    return f"{bits[0]} to {bits[-1]}" if is_range else " or ".join(map(str, bits))


def check_model(model: ir.Model, target: Target) -> None:
    """Raises UnsupportedModelError where a node of the prepared model would not run on the target, whatever its scales."""
    if target.limits.static:
        model = model.clone()
        for value in (output for node in model.graph for output in node.outputs):
            value.shape = None  # what the model states of it need not be what it has
        infer(model)
        fix_sizes(model)
        _check_sizes(model, target)
    for node in model.graph:
        if refusal := target.limits.refusal(node):
            raise UnsupportedModelError(f"{label(node)}: {refusal}")


def _check_sizes(model: ir.Model, target: Target) -> None:
    for name, value, axis in free_sizes(model.graph):
        raise UnsupportedModelError(
            f"input {value.name!r}: size {name!r} of axis {axis} is free, and {target.title} takes fixed sizes only; "
            f"fix it (--fix-input '{name}=1', or Config(fixed_inputs={{'{name}': 1}})): the deployed model has that size"
        )
    for node in model.graph:
        for value in node.outputs:
            if (value.uses() or value.is_graph_output()) and not all(
                isinstance(size, int) for size in value.shape or ()
            ):
                raise UnsupportedModelError(
                    f"{label(node)}: the size of its output {value.name!r} is not known before it runs, and {target.title} "
                    "takes fixed sizes only; export the model without it"
                )
