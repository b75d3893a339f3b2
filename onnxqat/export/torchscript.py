"""PyTorch's TorchScript exporter, which traces the forward pass."""

from __future__ import annotations

import contextlib
import io as memory
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from onnxqat.errors import UnsupportedModelError
from onnxqat.export.finish import tidy
from onnxqat.export.forward import Forward
from onnxqat.export.quiet import no_printing, quiet, reason


class DecidesByValueError(UnsupportedModelError):
    """The forward pass decides by the values of tensors, which no exporter can write."""


def write(forward: Forward, opset: int) -> ir.Model:
    """Runs the TorchScript exporter.

    It is preferred: the newer one (torch 2.13) cannot write opset 17 and turns global average pooling into ReduceMean.
    PRESERVE keeps BatchNormalization a node of its own with its parameters' names, and constants unfolded: this package
    folds them where it can keep the names.

    Raises:
        DecidesByValueError: the module decides by the values of tensors.
        UnsupportedModelError: the exporter cannot write the module.
    """
    stream = memory.BytesIO()
    with warnings.catch_warnings(record=True) as caught, no_printing(), no_fused_attention():
        warnings.simplefilter("always")
        try:
            torch.onnx.export(
                forward.module,
                forward.inputs,
                stream,
                input_names=forward.names,
                output_names=list(forward.outputs),
                dynamic_axes={name: {0: "batch"} for name in [*forward.names, *forward.batched()]},
                opset_version=opset,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                dynamo=False,
            )
        except Exception as error:
            raise UnsupportedModelError(
                f"{forward.kind}: PyTorch cannot export it ({reason(error)}); "
                "write that part with operations that ONNX has"
            ) from error
    decisions = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]
    if decisions:
        _check_control_flow(forward, decisions[0])
    return tidy(onnx.load_from_string(stream.getvalue()))


@contextlib.contextmanager
def no_fused_attention() -> Iterator[None]:
    """Keeps nn.TransformerEncoderLayer to its plain operations; its fused one in evaluation mode has no ONNX form."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _check_control_flow(forward: Forward, warning: warnings.WarningMessage) -> None:
    """Refuses a module whose Python code decides by the values of tensors.

    Tracing follows one side of an `if` and only warns, for decisions by values as for harmless ones by shapes;
    torch.export tells them apart.
    """
    batch = ({0: torch.export.Dim.DYNAMIC},) * len(forward.inputs)
    try:
        with quiet(), contextlib.redirect_stderr(memory.StringIO()):
            torch.export.export(forward.module, forward.inputs, dynamic_shapes=batch, strict=False)
    except GuardOnDataDependentSymNode as error:
        raise DecidesByValueError(
            f"{forward.kind}: {Path(warning.filename).name} line {warning.lineno} decides by the values of a "
            "tensor, which an ONNX graph cannot follow; use torch.where, or move the decision out of forward"
        ) from error
    except Exception:
        # Whatever else torch.export cannot do is no fault of the graph that tracing gave; the comparison judges that.
        return
