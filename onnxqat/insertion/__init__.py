"""Float model in, Q/DQ model out: prepare, match, calibrate, place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.config import Config, Correction
from onnxqat.data import sources
from onnxqat.data.batch import Batch
from onnxqat.data.sources import Batches, Source, Transform
from onnxqat.distributed import Workers
from onnxqat.graph import files, io
from onnxqat.graph.biases import DEPLOYED_AS, Bias, make_room, round_biases
from onnxqat.graph.constants import constant
from onnxqat.graph.pairs import OVERFLOW_FIX, PAIRS
from onnxqat.graph.qdq import Spec
from onnxqat.graph.without import ADAPTED, TARGET
from onnxqat.insertion.calibration.calibrate import Observed, Observer, calibrate
from onnxqat.insertion.calibration.correct import correct_outputs, corrected_layers
from onnxqat.insertion.calibration.hold import hold_weights
from onnxqat.insertion.calibration.losses import warn_of_losses, warn_of_overflow
from onnxqat.insertion.calibration.moments import Noted
from onnxqat.insertion.calibration.ranges import weight_range
from onnxqat.insertion.demands import check_model, settled
from onnxqat.insertion.groups import Skip
from onnxqat.insertion.inputs import check_inputs
from onnxqat.insertion.match import find_groups
from onnxqat.insertion.origins import are_around_middle
from onnxqat.insertion.place import Grid, Placement, new_grid, place
from onnxqat.insertion.preparation import check_conversion, prepare, ready_for_blocks, with_all_types, with_float8
from onnxqat.insertion.preparation.simplify import zero_bias_in_gemm
from onnxqat.insertion.scopes import with_names
from onnxqat.insertion.settings import layers
from onnxqat.insertion.sites import ActivationSite, WeightSite, activation_sites, constant_sites, weight_sites
from onnxqat.insertion.sixteen import values_that_lose
from onnxqat.insertion.tables import table_sites
from onnxqat.insertion.widths import widths
from onnxqat.numerics import scale_and_zero_point
from onnxqat.runtime import check_answers, checked, explained
from onnxqat.targets import TARGETS, Target
from onnxqat.terminal.progress import track

log = logging.getLogger(__name__)


def insert(
    model: io.ModelLike,
    calibration: str | Path | Source | Batches,
    config: Config | None = None,
    *,
    sample_axis: int | None = None,
    transform: Transform | None = None,
    distributed: bool = False,
) -> onnx.ModelProto:
    """Inserts quantizers into a float model, with ranges from calibration data: post-training quantization, ready to train.

    Args:
        model: path of a float ONNX model, or the model itself; it is not changed.
        calibration: batches (see `onnxqat.data`); a few hundred samples usually suffice, memory does not grow with their number.
        config: settings; None: `Config()`.
        sample_axis: axis of the first input that counts samples; None: it follows from the model, and is usually the first.
        transform: turns an item of the loader into a batch.
        distributed: whether this is one of several processes that torchrun started: each observes its part of the batches,
            and all return the same model.

    Returns:
        The Q/DQ model: weights as they were (BatchNormalization folded), 8-bit layers' biases on their int32 grid, and a
        QuantizeLinear/DequantizeLinear pair at each site. Nodes that stay in float say why in their metadata (`onnxqat.float`).

    Example:
        ```python
        config = onnxqat.Config(target="openvino", weight_bits=4)
        qdq = onnxqat.insert("model.onnx", calibration_batches, config)
        onnxqat.save(qdq, "model.qdq.onnx")
        ```

    Raises:
        InputError: model, data or configuration is wrong; the message says which and what to do.
        UnsupportedModelError: the model has nothing to quantize, or custom operators.
    """
    return _inserted(
        model, calibration, config or Config(), sample_axis=sample_axis, transform=transform, distributed=distributed
    )


def _inserted(
    model: io.ModelLike,
    calibration: str | Path | Source | Batches,
    config: Config,
    *,
    sample_axis: int | None,
    transform: Transform | None,
    distributed: bool,
    warns: bool = True,
) -> onnx.ModelProto:
    """The same; `warns`: whether it says what the model loses, which is no news of a model that is only measured."""
    workers = Workers.join() if distributed else Workers()
    table = TARGETS[config.target]
    config = settled(config, table)
    table = (table.float8 or table) if config.has_float8 else table
    with explained(model):
        prepared = prepare(model, config.fixed_inputs, table)
        check_model(prepared, table)
        if config.correction != "none":
            zero_bias_in_gemm(prepared.graph)
        if config.has_blocks:
            prepared = ready_for_blocks(prepared)
        if config.has_wide_activations:
            prepared = with_all_types(prepared)
        if config.has_float8:
            prepared = with_float8(prepared)
        config = with_names(config, model, prepared, table)
        groups, skips = find_groups(prepared, table, config)
    graph = prepared.graph
    batches = sources.batches(calibration, prepared, transform=transform, sample_axis=sample_axis)
    losing: frozenset[str] = frozenset()
    if config.sixteen is not None:
        batches.check_epochs(2, "calibration data, which is read twice to measure what loses most with 8 bits")
        narrow = config.model_copy(update={"sixteen": None, "output_correction": "none"})
        read = partial(_inserted, sample_axis=sample_axis, transform=transform, distributed=distributed)
        losing = values_that_lose(read(model, calibration, narrow, warns=False), next(iter(batches)))
    computed = widths(groups, layers(groups, config, table), table, config, losing)
    weights = weight_sites(groups, table, config) + constant_sites(groups, computed)
    activations = activation_sites(graph, groups, computed, table, config)
    taken = {site.value for site in weights} | {site.value for site in activations}
    tables = table_sites(graph, taken, config)
    correction = _correction(config)
    check_inputs(prepared, config.inputs)
    free = [site for site in activations if site.fixed is None]
    weighted = [group.node for group in groups if group.weight is not None]
    with files.workplace() as folder:
        noted = None if correction == "none" else Noted(corrected_layers(weighted), config.correction_samples, folder)
        observers, sample = _calibrated(prepared, free, batches, workers, noted)
        check_conversion(model, config.fixed_inputs, sample)
        original, names = prepared.clone(), {site.value: str(site.value.name) for site in activations}
        placements = [_weight_placement(graph, site, config) for site in (*weights, *tables)]
        placements += _activation_placements(graph, activations, observers, table)
        place(graph, placements, table)
        _note(prepared, skips, table, config)
        hold_weights(prepared)
        make_room(prepared)
        if noted is not None:
            kinds = {"deviations": correction == "affine", "judged": config.output_correction is None}
            if correct_outputs(original, prepared, weighted, noted, workers, **kinds):
                prepared.metadata_props[ADAPTED] = "the correction of outputs"
                hold_weights(prepared)
                make_room(prepared)
    round_biases(prepared, _is_fine)
    log.info(
        "inserted %d weight and %d activation quantizers; %d nodes stay in float",
        len(weights) + len(tables),
        len(activations),
        len(skips),
    )
    check_answers(prepared, sample)
    if table.placement.whole and workers.is_first:
        warn_of_overflow(original, [str(skip.node.name) for skip in skips], sample)
    calibrated = config.activation_range.samples != 0
    if warns and workers.is_first and calibrated and not config.has_few_bits:
        may_be_wide = 16 in table.widths.taken - table.widths.simulated and not config.has_wide_activations
        warn_of_losses(original, prepared, names, weighted, sample, may_be_wide=may_be_wide)
    return checked(io.to_proto(prepared))


def _correction(config: Config) -> Correction:
    """The correction of outputs; none where nobody asked for it, and the data is not to be read."""
    unread = config.activation_range.samples == 0
    return "none" if config.output_correction is None and unread else config.correction


def _calibrated(
    model: ir.Model, sites: Iterable[ActivationSite], batches: Batches, workers: Workers, noted: Noted | None
) -> tuple[dict[Observed, Observer], Batch]:
    """The observations of the sites' values, and the first batch."""
    first: list[Batch] = []
    wanted = [site.observed for site in sites]
    found = calibrate(model, wanted, batches, workers, batches.signature.samples, noted, progress=_remembering(first))
    return found, first[0] if first else next(iter(batches))


def _remembering(first: list[Batch]) -> Callable[[Iterable[Batch], str], Iterable[Batch]]:
    """Returns a function that shows progress over batches and keeps the first of them."""

    def followed(batches: Iterable[Batch], what: str) -> Iterable[Batch]:
        for batch in track(batches, what):
            if not first:
                first.append(batch)
            yield batch

    return followed


def _is_fine(bias: Bias) -> bool:
    """Whether nothing is lost to training by rounding a bias as deployment will; few bits make a coarse grid."""
    return min(bias.data.bits, bias.weight.bits) >= 8


def _weight_placement(graph: ir.Graph, site: WeightSite, config: Config) -> Placement:
    array = constant(site.value)
    assert array is not None
    low, high = weight_range(array.astype(np.float32, copy=False), site.spec, site.estimate)
    qmin, qmax = site.spec.bounds
    scale, zero_point = scale_and_zero_point(low, high, qmin, qmax, symmetric=site.spec.symmetric)
    # its scale keeps the lowest code away: no Clip is needed
    held = config.overflow_fix == PAIRS and site.spec.bits == 8 and site.spec.symmetric
    spec = replace(site.spec, narrow=False) if held else site.spec
    grid = new_grid(graph, str(site.value.name), spec, scale, zero_point)
    return Placement(site.value, replace(grid, fixed=site.is_fixed), site.users)


def _activation_placements(
    graph: ir.Graph, sites: Sequence[ActivationSite], observers: Mapping[Observed, Observer], table: Target
) -> list[Placement]:
    placements = []
    grids: dict[tuple[frozenset[ir.Value], int], Grid] = {}
    for site in sites:
        key = (site.joined, site.bits)
        if key not in grids:
            stem = str(site.value.name) if site.users is None else f"{site.value.name}_{site.bits}bit"
            together = [replace(site.observed, value=value) for value in site.joined]
            seen = [observers[one] for one in together if one in observers]
            grids[key] = _fixed_grid(graph, stem, site) or _activation_grid(graph, stem, site, seen, table)
        placements.append(Placement(site.value, grids[key], site.users))
    return placements


def _fixed_grid(graph: ir.Graph, stem: str, site: ActivationSite) -> Grid | None:
    if site.fixed is None:
        return None
    scale, zero_point = np.asarray(site.fixed[0], np.float32), np.asarray(site.fixed[1], np.int32)
    spec = Spec(site.bits, signed=False, symmetric=False)
    return replace(new_grid(graph, stem, spec, scale, zero_point), fixed=True)


def _activation_grid(
    graph: ir.Graph, stem: str, site: ActivationSite, observers: Sequence[Observer], table: Target
) -> Grid:
    symmetric = site.settings.symmetric
    ranges = [observer.range(2**site.bits, symmetric=symmetric) for observer in observers]
    low: NDArray[Any] = np.min([low for low, _ in ranges], axis=0)
    high: NDArray[Any] = np.max([high for _, high in ranges], axis=0)
    high = np.maximum(high, low + table.ranges.least)
    if site.settings.signed:
        low = np.minimum(low, -high)
    if not table.activations.unsigned and symmetric:
        high = np.maximum(high, -low)  # the lowest code stays free, as in weights
    may_be_signed = table.activations.signed and symmetric and not are_around_middle(site.joined, graph, table)
    signed = not table.activations.unsigned or (may_be_signed and bool(np.any(low < 0)))
    spec = Spec(site.bits, signed=signed, symmetric=symmetric, axis=site.axis, float8=site.settings.float8)
    scale, zero_point = scale_and_zero_point(low, high, *spec.bounds, symmetric=symmetric)
    return new_grid(graph, stem, spec, scale, zero_point)


def _note(model: ir.Model, skips: Iterable[Skip], table: Target, config: Config) -> None:
    """Leaves in the model what later stages and readers need: target, stages of training, why nodes stay in float."""
    model.metadata_props[TARGET] = table.name
    model.metadata_props[OVERFLOW_FIX] = config.overflow_fix
    model.metadata_props[DEPLOYED_AS] = "int32" if table.biases.integer else "float"
    for name in ("activation_start_epoch", "weight_start_epoch"):
        if epoch := getattr(config, name):
            model.metadata_props[f"onnxqat.{name}"] = str(epoch)
    for skip in skips:
        skip.node.metadata_props["onnxqat.float"] = skip.reason
