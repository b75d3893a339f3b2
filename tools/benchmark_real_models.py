"""Six pretrained models through insert, train, fold and verify: `python -m tools.benchmark_real_models [NAME ...] [--readme]`.

Prints a table, and with `--readme` writes it into docs/benchmarks.md and a digest of it into README.md. Results of earlier
runs are kept in .cache/real_models_results.json, so that single models can be run again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tools.packages import FOLDER
from tools.readme import BENCHMARKS, README, digest, replace_section
from tools.real_models.recipes import MODELS, RealModel
from tools.real_models.run import Result, run

KEPT = FOLDER.parent / "real_models_results.json"

WIDTHS = ("eight", "low")
#: Results by model and width.
Results = dict[str, dict[str, Result]]


def main() -> None:
    """Runs the named models, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(model.name for model in MODELS))
    parser.add_argument("--only", choices=WIDTHS, help="run one of the two widths; the other keeps its last result")
    parser.add_argument("--interpreter", type=Path, help="Python of an environment whose onnxruntime verifies")
    parser.add_argument(
        "--readme", action="store_true", help="write the table into docs/benchmarks.md, a digest into README.md"
    )
    arguments = parser.parse_args()
    for model in [m for m in MODELS if m.name in (arguments.names or [m.name for m in MODELS])]:
        data = model.data()
        for width in [arguments.only] if arguments.only else WIDTHS:
            result = run(model, getattr(model, width), data, interpreter=arguments.interpreter)
            results = _kept()
            results.setdefault(model.name, {})[width] = result
            plain = {name: {k: asdict(r) for k, r in found.items()} for name, found in results.items()}
            KEPT.write_text(json.dumps(plain, indent=1))
            print(model.name, result, flush=True)
    text = table(_kept())
    print(text)
    if arguments.readme:
        replace_section("real-models", text, BENCHMARKS)
        replace_section("real-models", digest(text), README)


def _kept() -> Results:
    if not KEPT.exists():
        return {}
    return {name: {k: Result(**r) for k, r in found.items()} for name, found in json.loads(KEPT.read_text()).items()}


def table(results: Results) -> str:
    """Markdown: a line per model and width, and the processor."""
    lines = [
        "| model | float | width | not corrected | inserted | trained | deployed | recovered | same top-1 "
        "| size | latency | integer layers |",
        "| --- | --: | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for model in MODELS:
        found = results.get(model.name, {})
        lines += [_line(model, found[width]) for width in WIDTHS if width in found]
    processors = sorted({result.processor for found in results.values() for result in found.values()})
    lines += ["", f"Measured on {'; '.join(processors)}."]
    return "\n".join(lines)


def _line(model: RealModel, result: Result) -> str:
    digits = 2 if model.unit == "dB" else 1
    scores = [result.float_model, result.uncorrected, result.inserted, result.trained, result.deployed]
    whole, *quantized = (f"{score:.{digits}f} {model.unit}" for score in scores)
    lost = result.float_model - result.uncorrected
    recovered = f"{result.recovered:.0%}" if lost > (0.3 if model.unit == "dB" else 0.5) else ""
    # the largest number of an embedding or a picture says nothing
    agreement = "" if model.unit == "dB" or model.name == "sentences" else f"{result.agreement or 0:.1%}"
    cells = [model.title, whole, result.name, *quantized, recovered, agreement]
    cells += [f"{result.size_ratio:.2f}", f"{result.latency_ratio:.2f}", f"{result.integer} of {result.layers}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
