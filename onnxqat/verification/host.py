"""A runtime ready to load models, here or in the environment of another Python interpreter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.errors import InputError, MissingExtraError, short_reason
from onnxqat.graph import files, io
from onnxqat.graph.apart import keep_biases
from onnxqat.graph.sizes import fixed_sizes
from onnxqat.names import RuntimeName
from onnxqat.targets import TARGETS
from onnxqat.verification import worker
from onnxqat.verification.calls import Here, There, located, there

Arrays = dict[str, NDArray[Any]]

PACKAGES: dict[RuntimeName, str] = {one.runtime: one.package for one in TARGETS.values()}
#: Runtime of a model that names no target, and runtime of each target (`onnxqat.target`).
RUNTIME_OF: dict[str | None, RuntimeName] = {None: "ort", **{one.name: one.runtime for one in TARGETS.values()}}
#: Layers whose biases a runtime computes wrongly in front of a quantizer, deployed and simulated.
LOSE_BIASES: dict[RuntimeName, frozenset[str]] = {
    one.runtime: one.biases.lost_by for one in TARGETS.values() if one.biases.lost_by
}
#: ONNX Runtime 1.19.2 and 1.24.4 give 0 for 0.75, 1.32.0 gives 1.
_PROBE = """<ir_version: 9, opset_import: ["": 19]>
probe (float[1] x) => (float[1] y) <float one = {1}, int8 zero = {0}>
{
  half = Cast<to = 10>(x)
  step = Cast<to = 10>(one)
  code = QuantizeLinear(half, step, zero)
  y = Cast<to = 1>(code)
}"""


@dataclass(frozen=True)
class Host:
    """A runtime at work, with a folder for the files that go to and from it.

    Attributes:
        runtime: which one.
        threads: how many threads it may use.
        folder: temporary folder, gone after use.
        calls: where the worker runs.
        stands_for: title of the runtime whose answers it only simulates, quantizers in float; "" where it is that runtime.
    """

    runtime: RuntimeName
    threads: int
    folder: Path
    calls: Here | There
    stands_for: str = ""

    def version(self) -> str:
        """Name and version of the runtime."""
        return str(self._call("version"))

    def load(self, name: str, model: ir.Model, *, simulate: bool = False) -> Path:
        """Loads a model under a name; `simulate` computes its quantizers in float, as training does.

        Returns:
            The file that the model was written to for the runtime.

        Raises:
            InputError: the runtime refuses the model, or computes it wrongly.
        """
        if _quantizes_halves(model) and not self._rounds_halves():
            raise InputError(
                f"{name} model: {self.version()} cuts float16 values off where QuantizeLinear rounds them; name the Python of an "
                "environment with onnxruntime 1.32 or newer (--interpreter)"
            )
        if simulate and (layers := LOSE_BIASES.get(self.runtime)):
            model = model.clone()
            keep_biases(model.graph, layers)
        path, rows, simulate = self._write(name, model), _fixed_rows(model), simulate or bool(self.stands_for)
        self._call("load", name, name=name, path=path, threads=self.threads, simulate=simulate, rows=rows)
        return Path(path)

    def _rounds_halves(self) -> bool:
        path = self._write("probe", ir.from_proto(onnx.parser.parse_model(_PROBE)))
        self._call("load", "probe", name="probe", path=path, threads=1, simulate=True, rows=None)
        (code,) = self.run("probe", {"x": np.full(1, 0.75, np.float32)}).values()
        return bool(code == 1)

    def run(self, name: str, inputs: Arrays) -> Arrays:
        """Outputs of a loaded model by name."""
        outputs: Arrays = self._call("run", name, name=name, inputs=inputs)
        return outputs

    def time(self, names: list[str], inputs: Arrays, seconds: float) -> dict[str, NDArray[np.float64]]:
        """Durations in seconds of runs taken in turn: [rounds] for each model."""
        taken = self._call("time", names[0], names=names, inputs=inputs, seconds=seconds)
        return {name: np.asarray(taken[name]) for name in names}

    def executed(self, model: ir.Model) -> dict[str, Any]:
        """Returns what the runtime executes: {"model": path of its optimized graph} or {"layers": ...}."""
        path = self._write("marked", model)
        answer = self._call("executed", "deployed", path=path, folder=str(self.folder), threads=self.threads)
        return dict(answer)

    def profile(self, model: ir.Model, inputs: Arrays, rounds: int = 5) -> dict[str, float]:
        """Returns milliseconds of each node of the graph that `executed` gives; empty where the runtime tells none."""
        path = self._write("marked", model)
        found = self._call(
            "profile",
            "deployed",
            path=path,
            folder=str(self.folder),
            threads=self.threads,
            inputs=inputs,
            rounds=rounds,
        )
        return dict(found)

    def compiled(self, model: ir.Model, **device: str) -> Path:
        """Compiles the model for a device (see `qnn.compiled`), and returns the file."""
        path, output = self._write("deployed", model), str(self.folder / "compiled.onnx")
        self._call("compiled", "deployed", path=path, output=output, threads=self.threads, device=device)
        return Path(output)

    def _write(self, name: str, model: ir.Model) -> str:
        path = self.folder / f"{name}.onnx"
        io.write(model, path)
        return str(path)

    def _call(self, call: str, model: str = "", **arguments: Any) -> Any:
        try:
            return self.calls(call, arguments)
        except worker.WorkerError as failure:
            _explain(failure, self, model)


def _quantizes_halves(model: ir.Model) -> bool:
    values = (value for node in model.graph if node.op_type == "QuantizeLinear" for value in node.inputs[1:2])
    tensors = (None if value is None else value.const_value for value in values)
    return any(tensor is not None and tensor.dtype == ir.DataType.FLOAT16 for tensor in tensors)


def _fixed_rows(model: ir.Model) -> int | None:
    """Number of samples that a model takes at once where `fold` fixed it; None: any, or not known."""
    shapes = [value.shape for value in model.graph.inputs if not value.is_initializer()]
    firsts = {shape[0] for shape in shapes if shape is not None and shape.rank()}
    (first,) = firsts if fixed_sizes(model) and len(firsts) == 1 else (None,)
    return first if isinstance(first, int) else None


def _explain(failure: worker.WorkerError, host: Host, model: str) -> NoReturn:
    if failure.kind == "missing":
        package = PACKAGES[host.runtime] if str(failure) != "numpy" else "numpy"
        remedy = f"run `{host.calls.python} -m pip install {package}`"
        if host.runtime == "qnn" and isinstance(host.calls, Here):
            remedy = "install it in an environment of its own, since it brings its own onnxruntime, and name that (--interpreter)"
        raise MissingExtraError(
            f"runtime {host.runtime!r}: {package} is not installed for {host.calls.python}; {remedy}"
        ) from failure
    reason = short_reason(failure)
    if failure.kind == "load":
        raise InputError(f"{model} model: {PACKAGES[host.runtime]} cannot load it: {reason}") from failure
    raise InputError(f"{model} model: {PACKAGES[host.runtime]} cannot run it on this batch: {reason}") from failure


@contextmanager
def opened(
    runtime: RuntimeName, interpreter: str | os.PathLike[str] | None = None, threads: int = 2, stands_for: str = ""
) -> Iterator[Host]:
    """A runtime ready to load models.

    Args:
        runtime: "ort", "openvino" or "qnn".
        interpreter: Python interpreter of the environment that has the runtime; None: this one.
        threads: how many threads the runtime may use.
        stands_for: see `Host`.

    Raises:
        InputError: no such runtime or interpreter, the runtime is not installed there, or it refuses a model or a batch.
    """
    if runtime not in PACKAGES:
        raise InputError(f"runtime {runtime!r}: is not one of {', '.join(map(repr, PACKAGES))}; choose one of them")
    with files.workplace() as folder:
        if interpreter is None:
            yield Host(runtime, threads, folder, Here(runtime), stands_for)
            return
        with there(located(interpreter), runtime, folder) as calls:
            yield Host(runtime, threads, folder, calls, stands_for)
