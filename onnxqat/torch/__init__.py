"""Training in PyTorch's own loop: a Q/DQ model as a `torch.nn.Module`, run forward and backward by its ONNX graph."""

from onnxqat.errors import MissingExtraError

try:
    import torch  # noqa: F401  (whether it is there at all)
except ModuleNotFoundError as error:
    raise MissingExtraError("PyTorch is not installed; run `pip install 'onnxqat[torch]'`") from error

from onnxqat.torch.module import QdqModule
from onnxqat.torch.wrap import as_module, quantize, to_model

__all__ = ["QdqModule", "as_module", "quantize", "to_model"]
