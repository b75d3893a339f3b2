"""Deployed models of the target tensorrt in TensorRT itself: `tools/check_tensorrt.sh`, which makes the environments.

`--make` inserts, trains and folds the networks of `tools.benchmark_targets`, with float16 around their integers or fp8 numbers,
and puts each beside its float model in float16, its data, and the answers of its simulation. `tools/tensorrt_engines.py` builds
and runs strongly typed engines of them, on a machine with a GPU. `--judge` scores their answers; with `--docs` it writes the
table of docs/targets.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onnxqat
from onnxqat.folding.half import in_float16
from onnxqat.graph import io
from onnxqat.runtime import Inference
from onnxqat.runtime.conversion import modern
from tools.benchmark_targets.measure import FOLDER, agreement, first_of, judged, quantized, rms
from tools.benchmark_targets.nets import NETS, WAYS
from tools.readme import ROOT, keep_lines, line, replace_section, section
from tools.real_models.model import Examples

PAGE = ROOT / "docs" / "targets.md"
HEADER = (
    "| net | target | layers that read 8 bits | over float16's time | trained | engine | same answers | rms | TensorRT |\n"
    "| --- | --- | --: | --: | --: | --: | --: | --: | --- |"
)
WAYS_HERE = ("tensorrt", "tensorrt-fp8")
#: Of test data for one network.
BYTES = 24 * 2**20


def make(net: str, way: str, folder: Path) -> str:
    """Writes the models of a network and their data; returns a line about it."""
    chosen = folder / f"{net}.{way}"
    chosen.mkdir(parents=True, exist_ok=True)
    qdq, data = quantized(net, way), chosen_data(net, way)
    deployed, model = onnxqat.fold(qdq, float16=True), modern(ir.load(NETS[net].path()))
    onnxqat.save(deployed, chosen / "strong.int8.onnx")
    onnxqat.save(io.to_proto(in_float16(model.clone())), chosen / "strong.float.onnx")
    if way == "tensorrt":  # version 8 knows no fp8
        onnxqat.save(onnxqat.fold(qdq, weights="float"), chosen / "weak.int8.onnx")
        onnxqat.save(io.to_proto(model), chosen / "weak.float.onnx")
    arrays = {f"{n}:{name}": array for n, batch in enumerate(data) for name, array in batch.inputs.items()}
    np.savez_compressed(chosen / "data.npz", **arrays)
    simulation = Inference(io.load(qdq))
    expected = {str(n): next(iter(simulation(dict(batch.inputs)).values())) for n, batch in enumerate(data)}
    np.savez_compressed(chosen / "expected.npz", **expected)
    findings = onnxqat.check(deployed)
    return f"{chosen.name}: check { ({kind: len(findings.of(kind)) for kind in ('refused', 'split', 'float')}) }"


def chosen_data(net: str, way: str) -> list[Examples]:
    """The first test data, as much as travels well."""
    data = judged(net, way)
    size = sum(array[0].nbytes for array in data[0].inputs.values())
    return first_of(data, max(4, BYTES // size))


def judge(folder: Path) -> Iterator[tuple[str, str]]:
    """Key and line of each network whose engine has run."""
    for net, way in keys():
        file = folder / f"{net}.{way}" / "engine.json"
        if file.exists():
            yield f"{net}/{way}", line(_cells(net, way, json.loads(file.read_text()), file.parent))


def keys() -> list[tuple[str, str]]:
    """Every network on every way to TensorRT."""
    return [(net, way) for net in NETS for way in WAYS_HERE if NETS[net].trained or WAYS[way].pretrained]


def _cells(net: str, way: str, engine: dict[str, Any], folder: Path) -> list[str]:
    subject, head = NETS[net], [NETS[net].title, WAYS[way].title]
    where = f"{engine['tensorrt']}, {engine['gpu']}"
    if "refused" in engine:
        return [*head, "refused", *[""] * 5, where]
    expected, found = (_arrays(folder / f"{name}.npz") for name in ("expected", "outputs"))
    labels = [label for batch in chosen_data(net, way) for label in batch.labels]
    scores = [f"{subject.score(each, labels):.1f} {subject.unit}" for each in (expected, found)]
    same = agreement(expected, found, subject.classes)
    kinds = [types.split(" -> ")[0] for types in engine["layers"].values() if "N/A" not in types]
    integer = sum(bool({"int8", "fp8"} & {*kind.split("+")}) for kind in kinds)
    return [
        *head,
        f"{integer} of {len(kinds)}" if kinds else "not told",
        f"{engine['milliseconds'] / engine['float_milliseconds']:.2f}",
        *scores,
        "" if same is None else f"{same:.2f} %",
        f"{rms(expected, found):.2g}",
        where,
    ]


def _arrays(file: Path) -> list[np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return [arrays[str(number)] for number in range(len(arrays.files))]


def main() -> None:
    """Makes, or judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", action="store_true", help="write models and data")
    parser.add_argument("--judge", action="store_true", help="score what the engines answered")
    parser.add_argument("--docs", action="store_true", help="and write the table into docs/targets.md")
    parser.add_argument("--only", nargs="*", metavar="NET/TARGET", default=["/".join(key) for key in keys()])
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "tensorrt")
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if asked.make:
        for key in asked.only:
            print(make(*key.split("/"), asked.folder), flush=True)
    if asked.judge:
        found = dict(judge(asked.folder))
        table = keep_lines(section("tensorrt", PAGE), HEADER, found.values(), [NETS[net].title for net in NETS], key=2)
        print(table)
        if asked.docs:
            replace_section("tensorrt", table, PAGE)


if __name__ == "__main__":
    main()
