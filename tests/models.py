"""Small models as text, and what a runtime makes of them: shared by the tests of all stages."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}


def model(body: str, *, opset: int = 17, ir_version: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from the text of its graph, `(inputs) => (outputs) { nodes }`, with arrays as initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> agraph {body}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def random(*shape: int, seed: int = 0, scale: float = 0.3) -> np.ndarray:
    """Normal float32 numbers."""
    return np.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) * scale, np.float32)


def batches(proto: onnx.ModelProto, count: int = 3, rows: int = 4) -> list[dict[str, np.ndarray]]:
    """Normal data for the model's inputs; free dimensions are `rows`."""
    fixed = {i.name for i in proto.graph.initializer}
    shapes = {
        i.name: [d.dim_value or rows for d in i.type.tensor_type.shape.dim]
        for i in proto.graph.input
        if i.name not in fixed
    }
    return [{name: random(*shape, seed=n, scale=1.0) for name, shape in shapes.items()} for n in range(count)]


def session(proto: onnx.ModelProto, *, optimized: Path | None = None, plain: bool = False) -> ort.InferenceSession:
    """A session of one thread; `plain` runs the nodes as they stand."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(proto: onnx.ModelProto, batch: dict[str, np.ndarray], *, plain: bool = True) -> list[np.ndarray]:
    """Returns the outputs that ONNX Runtime computes."""
    return session(proto, plain=plain).run(None, batch)


def optimized(proto: onnx.ModelProto) -> onnx.GraphProto:
    """ONNX Runtime's own optimized graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(proto, optimized=path)
        return onnx.load(path, load_external_data=False).graph


def kernels(proto: onnx.ModelProto) -> Counter[str]:
    """Operators of ONNX Runtime's own optimized graph."""
    return Counter(node.op_type for node in optimized(proto).node)


def float_kernels(proto: onnx.ModelProto) -> set[str]:
    """Weighted operators that ONNX Runtime left in float."""
    return set(kernels(proto)) & FLOAT_KERNELS


def operators(proto: onnx.ModelProto) -> Counter[str]:
    """Operators of the model itself."""
    return Counter(node.op_type for node in proto.graph.node)


def node(proto: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    """The one node of that type."""
    (found,) = [n for n in proto.graph.node if n.op_type == op_type]
    return found


def array(proto: onnx.ModelProto, name: str) -> np.ndarray:
    """An initializer as an array."""
    (found,) = [i for i in proto.graph.initializer if i.name == name]
    return numpy_helper.to_array(found)


def chain(proto: onnx.ModelProto) -> list[str]:
    """Operators in order, quantizers as `Q` and `DQ`, weights' quantizers left out."""
    fixed = {i.name for i in proto.graph.initializer}
    for item in proto.graph.node:
        if all(name in fixed for name in item.input if name):
            fixed.update(item.output)
    short = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}
    return [short.get(n.op_type, n.op_type) for n in proto.graph.node if n.output[0] not in fixed]


def quantized_by_onnxruntime(
    proto: onnx.ModelProto, folder: Path, data: Iterable[dict[str, np.ndarray]] | None = None, **settings: object
) -> onnx.ModelProto:
    """The Q/DQ model of uint8 and int8 that ONNX Runtime's own tool makes with the data, or `batches`, by way of files."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    onnx.save(proto, folder / "m.onnx")
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    reader = _reader(batches(proto) if data is None else data)
    quantize_static(folder / "m.onnx", folder / "q.onnx", reader, quant_format=QuantFormat.QDQ, **types | settings)
    return onnx.load(folder / "q.onnx")


def quantized_by_onnxruntime_for_qnn(proto: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The Q/DQ model that ONNX Runtime's own tool makes with its configuration for QNN."""
    from onnxruntime.quantization import quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    onnx.save(proto, folder / "m.onnx")
    quantize(folder / "m.onnx", folder / "q.onnx", get_qnn_qdq_config(folder / "m.onnx", _reader(batches(proto))))
    return onnx.load(folder / "q.onnx")


def _reader(data: Iterable[dict[str, np.ndarray]]) -> object:
    """Batches as ONNX Runtime's tools read them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(data)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    return Reader()


def decibels(expected: np.ndarray, found: np.ndarray) -> float:
    """Power of a signal over that of what another one adds to it."""
    noise = np.square(np.float64(found) - expected).sum()
    return float(10 * np.log10(np.square(np.float64(expected)).sum() / noise)) if noise else np.inf
