"""Deployed models of the target tensorrt in TensorRT itself: `tools/check_tensorrt.sh`, which makes the environment.

Each network is inserted, folded with float16 around its integers, and built as a strongly typed engine; so is its float model in
float16. Printed are the findings of `check`, the precisions of the engine's layers, both times, and how far the engine's answers
are from those of the Q/DQ model. Nothing of this has run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import onnxqat
from models import fashion_mnist
from onnxqat.folding.half import in_float16
from onnxqat.graph import io
from onnxqat.runtime import Inference
from tools.networks import bert, resnet18, unet

Batch = dict[str, NDArray[Any]]
BATCH, RUNS = 32, 100


@dataclass(frozen=True)
class Subject:
    """A float model, and a batch of data to calibrate and compare with.

    Attributes:
        title: its name.
        model: the float model.
        batch: the data.
    """

    title: str
    model: onnx.ModelProto
    batch: Batch


def subjects() -> Iterator[Subject]:
    """A trained classifier, and known structures with random weights."""
    images = next(iter(fashion_mnist.test()))["image"][:BATCH]
    yield Subject("ResNet-20", onnx.load(Path(fashion_mnist.__file__).with_name("resnet20.onnx")), {"image": images})
    for title, model in (("ResNet-18", resnet18()), ("BERT-like", bert()), ("U-Net-like", unet())):
        value = model.graph.input[0]
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim][1:]
        data = np.random.default_rng(0).standard_normal((BATCH, *shape), dtype=np.float32)
        yield Subject(title, model, {value.name: data})


def engine_of(model: onnx.ModelProto, batch: Batch) -> Any:
    """The strongly typed engine of a model, for the shapes of the batch."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # what TensorRT 11 always does
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise SystemExit("\n".join(str(parser.get_error(n)) for n in range(parser.num_errors)))
    settings, profile = builder.create_builder_config(), builder.create_optimization_profile()
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name, array in batch.items():
        profile.set_shape(name, *[array.shape] * 3)
    settings.add_optimization_profile(profile)
    return trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, settings))


def precisions(engine: Any) -> Counter[str]:
    """Number of layers by the type of what they write first."""
    import tensorrt as trt

    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text)["Layers"]
    formats = [one["Outputs"][0]["Format/Datatype"] for one in layers if isinstance(one, dict) and one.get("Outputs")]
    return Counter(str(found).split()[-1] for found in formats)


def run_on(engine: Any, batch: Batch) -> tuple[NDArray[np.float32], float]:
    """The first output, and milliseconds of a run."""
    import torch

    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    tensors = {name: torch.from_numpy(array).cuda() for name, array in batch.items()}
    for name, tensor in tensors.items():
        context.set_input_shape(name, tuple(tensor.shape))
    names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
    outputs = [name for name in names if name not in tensors]
    tensors |= {name: torch.empty(tuple(context.get_tensor_shape(name)), device="cuda") for name in outputs}
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(2 * RUNS):
        if turn == RUNS:
            start.record(stream)
        context.execute_async_v3(stream.cuda_stream)
    end.record(stream)
    stream.synchronize()
    return tensors[outputs[0]].cpu().numpy(), start.elapsed_time(end) / RUNS


def report(subject: Subject, build: Callable[[onnx.ModelProto, Batch], Any] | None) -> Iterator[str]:
    """Lines about one network."""
    qdq = onnxqat.insert(subject.model, [subject.batch], onnxqat.Config(target="tensorrt"))
    deployed = onnxqat.fold(qdq, float16=True)
    findings = onnxqat.check(deployed)
    told = {kind: len(findings.of(kind)) for kind in ("refused", "split", "float")}
    yield f"{subject.title}: check {told}"
    if build is None:
        return
    engine = build(deployed, subject.batch)
    found, taken = run_on(engine, subject.batch)
    half = io.to_proto(in_float16(io.load(subject.model)))
    _, plain = run_on(build(half, subject.batch), subject.batch)
    expected = next(iter(Inference(io.load(qdq))(subject.batch).values()))
    off = float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
    same = float((found.argmax(-1) == expected.argmax(-1)).mean())
    yield f"  layers {dict(precisions(engine))}"
    yield f"  {taken:.3f} ms, float16 {plain:.3f} ms"
    yield f"  answers off by {off:.2%} of their root mean square; the largest is the same in {same:.2%}"


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-engines", action="store_true", help="make and check the models alone")
    arguments = parser.parse_args()
    for subject in subjects():
        for line in report(subject, None if arguments.without_engines else engine_of):
            print(line, flush=True)


if __name__ == "__main__":
    main()
