"""State of the machine: what it is, what is installed, and what is missing; for reports of faults, and before long work."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata, util

from rich.table import Table

from onnxqat import __version__
from onnxqat.errors import OnnxqatError
from onnxqat.process.processor import processor
from onnxqat.terminal.plain import cells

#: Modules that each extra brings, and what they are for.
EXTRAS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "torch": (("torch",), "export and training of PyTorch modules"),
    "keras": (("tensorflow", "keras", "tf2onnx"), "export and training of Keras models"),
    "distributed": (("torch",), "training in several processes"),
    "openvino": (("openvino",), "verification in OpenVINO"),
    "qnn": (("onnxruntime_qnn",), "verification in the emulator of Qualcomm's NPU"),
    "report": (("jinja2", "plotly"), "reports as pages for a browser"),
    "search": (("scipy",), "mixed precision"),
    "images": (("PIL",), "folders of images"),
    "tables": (("pyarrow",), "CSV and Parquet tables"),
    "datasets": (("datasets",), "saved Hugging Face datasets"),
    "metrics": (("sklearn", "skimage", "jiwer"), "metrics map, ssim and wer"),
    "yaml": (("yaml",), "settings in YAML"),
    "mlflow": (("mlflow",), "runs in MLflow"),
    "wandb": (("wandb",), "runs in Weights & Biases"),
    "tensorboard": (("tensorboardX",), "curves in TensorBoard"),
}
#: Extras that bring another onnxruntime.
APART = frozenset({"qnn"})


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        here: what was found.
        remedy: what to do about it; "" where nothing need be done.
        is_wrong: whether commands fail until that is done.
    """

    name: str
    here: str
    remedy: str = ""
    is_wrong: bool = False


@dataclass(frozen=True)
class Examined:
    """All that there is to say, in order."""

    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether commands can work."""
        return not any(finding.is_wrong for finding in self.findings)

    def table(self) -> Table:
        """One row for each finding."""
        found = Table("", "here", "to do")
        for finding in self.findings:
            found.add_row(*cells(finding.name, finding.here, finding.remedy))
        return found

    def to_json(self) -> str:
        """The findings as JSON text."""
        return json.dumps([asdict(finding) for finding in self.findings], indent=2)


def examined() -> Examined:
    """Looks at everything."""
    return Examined((*_machine(), *_runtime(), *(_extra(name, *about) for name, about in EXTRAS.items())))


def _machine() -> Iterator[Finding]:
    named = processor()
    yield Finding("onnxqat", __version__)
    yield Finding("Python", f"{platform.python_version()} on {platform.platform()}")
    advice = ""
    if named.endswith("without VNNI"):
        advice = "8-bit models of other tools may saturate here; what onnxqat inserts does not (verify says which)"
    yield Finding("processor", named, advice)


def _runtime() -> Iterator[Finding]:
    """The installed ONNX Runtime, or why it cannot be used."""
    try:
        from onnxqat.runtime import PACKAGES, TRAINING_PYTHONS, check_packages
        from onnxqat.runtime.devices import listed
        from onnxqat.runtime.engines import chosen

        check_packages()
    except ImportError as error:
        yield Finding("ONNX Runtime", f"cannot be imported ({error})", "pip install onnxqat", is_wrong=True)
        return
    except OnnxqatError as error:
        here, _, remedy = str(error).partition("; ")
        yield Finding("ONNX Runtime", here, remedy, is_wrong=True)
        return
    yield Finding(
        "ONNX Runtime", next((f"{name} {_version(name)}" for name in PACKAGES if _version(name)), "not packaged")
    )
    yield Finding("providers", ", ".join(listed()))
    engine, faster = chosen("auto"), f"onnxruntime-training-cpu has faster kernels (Python {TRAINING_PYTHONS})"
    yield Finding("engine of training", engine, "" if engine == "training" else faster)


def _extra(name: str, modules: tuple[str, ...], use: str) -> Finding:
    if all(util.find_spec(module) for module in modules):
        return Finding(use, ", ".join(_versions(module) for module in modules))
    where = " in an environment of its own" if name in APART else ""
    return Finding(use, "not installed", f"pip install 'onnxqat[{name}]'{where}")


def _versions(module: str) -> str:
    """The packages that provide a module, with versions."""
    packages = dict.fromkeys(metadata.packages_distributions().get(module, ()))
    return ", ".join(f"{package} {_version(package)}" for package in packages) or module


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
