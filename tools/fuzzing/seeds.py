"""Small, good files of many kinds, of which cases are mutations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

#: Graphs, the shapes of their initializers, and the shape of a sample.
NETWORKS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, ...]]] = {
    "convolutions": (
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w, b) r = Relu(a) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
            d = Conv<pads=[1,1,1,1], group=4, dilations=[1,1]>(m, v) n = BatchNormalization(d, g, h, u, s) c = Clip(n)
            e = Add(c, m) p = GlobalAveragePool(e) f = Flatten(p) y = Gemm<transB=1>(f, k, l) }""",
        {
            "w": (4, 3, 3, 3),
            "b": (4,),
            "v": (4, 1, 3, 3),
            "g": (4,),
            "h": (4,),
            "u": (4,),
            "s": (4,),
            "k": (5, 4),
            "l": (5,),
        },
        (3, 8, 8),
    ),
    "attention": (
        """(float[N,6,8] x) => (float[N,6,8] y) {
            n = LayerNormalization<axis=-1>(x, g, h) q = MatMul(n, w) k = MatMul(n, v) t = Transpose<perm=[0,2,1]>(k)
            a = MatMul(q, t) c = Constant<value=float {0.35}>() m = Mul(a, c) p = Softmax<axis=-1>(m) o = MatMul(p, n)
            r = Add(o, x) i = MatMul(r, u) j = Add(i, b) e = Erf(j) z = Mul(e, j) y = MatMul(z, s) }""",
        {"g": (8,), "h": (8,), "w": (8, 8), "v": (8, 8), "u": (8, 16), "b": (16,), "s": (16, 8)},
        (6, 8),
    ),
    "upsampling": (
        """(float[N,3,6,6] x) => (float[N,2,12,12] y) {
            a = Conv<auto_pad="SAME_UPPER">(x, w, b) r = LeakyRelu<alpha=0.1>(a) z = Constant<value=float[4] {1.0,1.0,2.0,2.0}>()
            e = Resize<mode="nearest">(r, , z) t = ConvTranspose<strides=[2,2]>(x, v) c = Concat<axis=1>(e, t)
            f = Sigmoid(c) y = Conv<kernel_shape=[1,1]>(f, u) }""",
        {"w": (4, 3, 3, 3), "b": (4,), "v": (3, 4, 2, 2), "u": (2, 8, 1, 1)},
        (3, 6, 6),
    ),
    "recurrent": (
        """(float[N,5,8] x) => (float[N,3] y) {
            t = Transpose<perm=[1,0,2]>(x) o, h = LSTM<hidden_size=4>(t, w, r, b) z = Constant<value=int64[1] {0}>()
            s = Squeeze(h, z) y = Gemm(s, v, c) }""",
        {"w": (1, 16, 8), "r": (1, 16, 4), "b": (1, 32), "v": (4, 3), "c": (3,)},
        (5, 8),
    ),
    "movement": (
        """(float[N,8,4] x) => (float[N,2] y) {
            k = Constant<value=int64[1] {1}>() s = Shape(x) z = Constant<value=int64 {0}>() n = Gather<axis=0>(s, z)
            i = Constant<value=int64[1] {0}>() m = Unsqueeze(n, i) l = Constant<value=int64[1] {32}>() q = Concat<axis=0>(m, l)
            a, b = Split<axis=1>(x) c = Concat<axis=1>(b, a) d = Reshape(c, q)
            e = MatMul(d, w) f = ReduceMax<axes=[1], keepdims=1>(e) g = Sub(e, f) h = Slice(g, i, o, k) y = MatMul(h, v) }""",
        {"w": (32, 6), "v": (4, 2)},
        (8, 4),
    ),
    "branches": (
        """(float[N,8] x) => (float[N,4] y) {
            a = Gemm(x, w, b) m = ReduceMean<keepdims=0>(a) z = Constant<value=float {0.0}>() c = Greater(m, z)
            d = If<then_branch = p () => (float[N,6] t) { t = Relu(a) }, else_branch = q () => (float[N,6] e) { e = Tanh(a) }>(c)
            y = Gemm(d, v) }""",
        {"w": (8, 6), "b": (6,), "v": (6, 4)},
        (8,),
    ),
}
CONFIGS: dict[str, object] = {
    "ours": {
        "target": "ort-cpu",
        "weight_bits": 8,
        "activation_bits": 8,
        "weight_range": {"type": "mse", "max_percentile": 99.9},
        "activation_range": "min_max",
        "ignore": [{"type": "Softmax"}],
        "overrides": [{"pattern": ".*", "weight_bits": 6, "exclude": [{"name": "nothing"}]}],
        "inputs": [{"shape": [2, 3, 8, 8], "filler": "random"}],
        "percentile": 99.99,
        "output_correction": "mean",
        "correction_samples": 512,
    },
    "nncf": {
        "input_info": {"sample_size": [1, 3, 8, 8], "type": "float"},
        "target_device": "CPU",
        "compression": {
            "algorithm": "quantization",
            "initializer": {"range": {"num_init_samples": 8, "type": "mean_min_max"}, "batchnorm_adaptation": {}},
            "weights": {"mode": "symmetric", "bits": 8, "per_channel": True},
            "activations": {"mode": "asymmetric", "bits": 8},
            "ignored_scopes": ["{re}nothing"],
            "overflow_fix": "enable",
        },
    },
}


def network(name: str) -> onnx.ModelProto:
    """A float model with random weights."""
    body, shapes, _ = NETWORKS[name]
    proto: onnx.ModelProto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {name} {body}')
    numbers = np.random.default_rng(0)
    for key, shape in shapes.items():
        array = np.abs(numbers.normal(size=shape)) + 0.1 if key == "s" else numbers.normal(size=shape) * 0.3
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), key))
    if name == "movement":
        proto.graph.initializer.append(numpy_helper.from_array(np.array([4]), "o"))
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}[{number}]"
    return proto


def samples(name: str, rows: int = 4) -> dict[str, np.ndarray]:
    """Data for a network, with labels."""
    numbers = np.random.default_rng(1)
    array = numbers.normal(size=(rows, *NETWORKS[name][2])).astype(np.float32)
    return {"x": array, "label": numbers.integers(0, 2, size=rows)}


def write_seeds(folder: Path) -> None:
    """Writes float, Q/DQ and deployed models, data, configurations and a checkpoint."""
    from onnxqat import Trainer, fold, insert, save

    folder.mkdir(parents=True)
    for name in NETWORKS:
        float_model, data = network(name), samples(name)
        save(float_model, folder / f"{name}.float.onnx")
        np.savez(folder / f"{name}.npz", **data)
        np.savez(folder / f"{name}.x.npz", x=data["x"])
        quantized = insert(float_model, [{"x": data["x"]}])
        save(quantized, folder / f"{name}.qdq.onnx")
        save(fold(quantized), folder / f"{name}.int8.onnx")
    for name, values in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    trainer = Trainer(folder / "convolutions.qdq.onnx", loss="cross_entropy")
    trainer.step(samples("convolutions"))
    trainer.save(folder / "run.safetensors")
