"""Six pretrained models through insert, train, fold and verify: `python -m tools.benchmark_real_models [NAME ...] [--readme]`.

Prints two tables, of all stages and of quantization without training, and with `--readme` writes them into docs/benchmarks.md and
a digest of the first into README.md. Results of earlier runs are kept in .cache/real_models_results.json, and lines without a
result there stay as they are in the page, so that single models can be run again, on whatever machine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from tools.packages import FOLDER
from tools.readme import BENCHMARKS, README, cells, digest, line, replace_section, section
from tools.real_models.recipes import MODELS, RealModel
from tools.real_models.run import PostTraining, Result, correction_cost, post_training, run

KEPT = FOLDER.parent / "real_models_results.json"

WIDTHS = ("eight", "low")
#: What is measured without training.
POST = "post"
#: What is measured of the correction of outputs alone; the rest of the model's result at few bits stays.
COST = "cost"
POST_TEXT = """\
The same models without training: `insert --weight-bits 4 --reconstruct`, so weights have 4 bits and a scale per channel, 8 bits
in the first and the last layer, and activations 8. It reads the training data without labels. The difference to float comes with
its standard error, by the jackknife over the batches of the judge's data; minutes are the processor's. In super-resolution
one of the six photos, at 42 dB, loses 0.6 dB, as with 8 bits throughout, and the others 0.03 to 0.12. It lost 1.3 dB, and the
mean 0.33, as long as nearly all photos to learn from were grey.
"""
HEADER = (
    "| model | float | width | not corrected | inserted | trained | deployed | recovered | same top-1 "
    "| size | latency | integer layers | correction's cost | rate, reconstruction | processor |\n"
    "| --- | --: | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- |"
)
POST_HEADER = (
    "| model | float | inserted | reconstructed | against float | minutes | processor |\n"
    "| --- | --: | --: | --: | --: | --: | --- |"
)
#: Results by model and width.
Results = dict[str, dict[str, Result]]
#: Results without training by model.
PostResults = dict[str, PostTraining]


def main() -> None:
    """Runs the named models, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [model.name for model in MODELS]
    parser.add_argument("names", nargs="*", choices=[*names, []], metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--only", choices=[*WIDTHS, POST, COST], help="run one of the widths; the others keep their last results"
    )
    parser.add_argument("--interpreter", type=Path, help="Python of an environment whose onnxruntime verifies")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--readme", action="store_true", help="write the tables into docs/benchmarks.md, a digest into README.md"
    )
    arguments = parser.parse_args()
    for model in [] if arguments.table else [m for m in MODELS if m.name in (arguments.names or names)]:
        data = model.data()
        for width in [arguments.only] if arguments.only else [*WIDTHS, POST]:
            if width == COST:
                _keep(model.name, "low", replace(_kept()[0][model.name]["low"], cost=correction_cost(model, data)))
                continue
            if width == POST:
                result: Result | PostTraining = post_training(model, data)
            else:
                result = run(model, getattr(model, width), data, interpreter=arguments.interpreter)
            _keep(model.name, width, result)
            print(model.name, result, flush=True)
    results, untrained = _kept()
    text = table(results, section("real-models", BENCHMARKS))
    post = post_table(untrained, section("real-models-post", BENCHMARKS))
    print(text, post, sep="\n\n")
    if arguments.readme:
        replace_section("real-models", text, BENCHMARKS)
        replace_section("real-models", digest(text), README)
        replace_section("real-models-post", post, BENCHMARKS)


def _keep(name: str, width: str, result: Result | PostTraining) -> None:
    found = _read()
    found.setdefault(name, {})[width] = asdict(result)
    KEPT.write_text(json.dumps(found, indent=1))


def _kept() -> tuple[Results, PostResults]:
    found = _read()
    trained = {name: {w: Result(**r) for w, r in each.items() if w != POST} for name, each in found.items()}
    return trained, {name: PostTraining(**each[POST]) for name, each in found.items() if POST in each}


def _read() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return found


def table(results: Results, earlier: str = "") -> str:
    """Markdown: a line per model and width; those without a result keep their line of the `earlier` table."""
    lines = {(head[0], head[2]): row for row in earlier.splitlines() if len(head := cells(row)) > 2}
    for model, width in product(MODELS, WIDTHS):
        if width in results.get(model.name, {}):
            result = results[model.name][width]
            lines[model.title, result.name] = _line(model, result)
    heads = [(model.title, getattr(model, width).name) for model, width in product(MODELS, WIDTHS)]
    return "\n".join([HEADER, *(lines[head] for head in heads if head in lines)])


def post_table(results: PostResults, earlier: str = "") -> str:
    """Markdown: what was measured, and a line per model; those without a result keep their line of the `earlier` table."""
    lines = {cells(row)[0]: row for row in earlier.splitlines() if row.startswith("|")}
    lines |= {model.title: _post_line(model, results[model.name]) for model in MODELS if model.name in results}
    return "\n".join([POST_TEXT, POST_HEADER, *(lines[model.title] for model in MODELS if model.title in lines)])


def _post_line(model: RealModel, found: PostTraining) -> str:
    digits = 2 if model.unit == "dB" else 1
    scores = (found.float_model, found.inserted, found.reconstructed)
    drop = f"{found.reconstructed - found.float_model:+.{digits}f} ± {found.error:.{digits}f}"
    shown = [model.title, *(f"{score:.{digits}f} {model.unit}" for score in scores), drop, f"{found.minutes:.1f}"]
    return line([*shown, _maker(found.processor)])


def _line(model: RealModel, result: Result) -> str:
    digits = 2 if model.unit == "dB" else 1
    scores = [result.float_model, result.uncorrected, result.inserted, result.trained, result.deployed]
    whole, *quantized = (f"{score:.{digits}f} {model.unit}" for score in scores)
    lost = result.float_model - result.uncorrected
    recovered = f"{result.recovered:.0%}" if lost > (0.3 if model.unit == "dB" else 0.5) else ""
    # the largest number of an embedding or a picture says nothing
    agreement = "" if model.unit == "dB" or model.name == "sentences" else f"{result.agreement or 0:.1%}"
    shown = [model.title, whole, result.name, *quantized, recovered, agreement]
    shown += [f"{result.size_ratio:.2f}", f"{result.latency_ratio:.2f}", f"{result.integer} of {result.layers}"]
    cost = f"{result.cost:.1f}" if result.name == model.low.name else ""
    return line(
        [*shown, cost, f"{result.rate:g}{', reconstructed' if result.blocks else ''}", _maker(result.processor)]
    )


def _maker(processor: str) -> str:
    return processor.partition(",")[0]


if __name__ == "__main__":
    main()
