from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.graph import external, io
from onnxqat.runtime import Inference
from tests.models import model, outputs, random

MODEL = model("(float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=random(3, 4))


def saved(path: Path, proto: onnx.ModelProto = MODEL) -> Path:
    onnx.save(proto, path)
    return path


def with_weights_beside(folder: Path) -> Path:
    """The model with its weight (48 bytes) in `weights.bin`."""
    proto = onnx.ModelProto.FromString(MODEL.SerializeToString())
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "model.onnx"


def test_path_and_model_in_memory_load_alike(tmp_path):
    from_path, from_proto = io.load(saved(tmp_path / "m.onnx")), io.load(MODEL)
    assert io.to_proto(from_path) == io.to_proto(from_proto)


def test_argument_is_not_modified():
    given = io.load(MODEL)
    before = io.to_proto(given)
    io.load(given).graph.inputs.pop()
    assert io.to_proto(given) == before


@pytest.mark.parametrize("share", range(0, 100, 10))
def test_file_that_is_cut_off_is_refused(tmp_path, share):
    content = saved(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) * share // 100])
    with pytest.raises(InputError, match=r"cut\.onnx: .*cut off") as caught:
        io.load(tmp_path / "cut.onnx")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m.onnx", "m.json", "m.onnxtxt", "m.textproto"])
def test_file_that_is_not_onnx_is_refused_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_text("hello, this is no model")
    with pytest.raises(InputError, match="not an ONNX file"):
        io.load(tmp_path / name)


@pytest.mark.parametrize("name", ["none.onnx", "."], ids=["missing", "folder"])
def test_path_without_a_file_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no such file"):
        io.load(tmp_path / name)


def test_graph_that_is_not_valid_is_refused():
    broken = onnx.ModelProto.FromString(MODEL.SerializeToString())
    broken.graph.node[0].input[1] = "nowhere"
    with pytest.raises(InputError, match="not a valid ONNX model"):
        io.load(broken)


def test_name_that_is_not_text_is_refused(tmp_path):
    proto = onnx.ModelProto.FromString(MODEL.SerializeToString())
    proto.graph.node[0].name = "product"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString().replace(b"product", b"produc\xf1"))
    with pytest.raises(InputError, match="a name is not UTF-8 text"):
        io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "INT4", "DOUBLE"])
def test_weight_of_another_size_than_its_shape_is_refused(kind):
    proto = model("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=21, ir_version=10, w=random(3, 4))
    proto.graph.initializer[0].data_type = onnx.TensorProto.DataType.Value(kind)
    with pytest.raises(InputError, match="not a valid ONNX model"):
        io.load(proto)


def test_opset_that_is_too_old_is_refused():
    body = "(float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }"
    with pytest.raises(InputError, match="opset 12 is"):
        io.load(model(body, opset=12, ir_version=10, w=random(3, 4)))


def test_newest_ir_version_is_lowered_to_what_the_runtime_reads():
    proto = model("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", ir_version=11)
    assert io.load(proto).ir_version == io.NEWEST_IR


def test_all_custom_operators_are_named_with_their_count():
    text = """<ir_version: 8, opset_import: ["": 17, "my": 1, "other": 1]> agraph (float[N] x) => (float[N] y)
        { a = my.F(x) b = my.F(a) c = other.G(b) y = Relu(c) }"""
    with pytest.raises(UnsupportedModelError, match=r"my::F \(2\), other::G \(1\)"):
        io.load(onnx.parser.parse_model(text))


def test_operators_that_onnx_does_not_know_are_all_named():
    proto = model("(float[N] x) => (float[N] y) { a = Complex(x) y = Fourier(a) }")
    with pytest.raises(UnsupportedModelError, match="operators Complex, Fourier have no ONNX form"):
        io.load(proto)


def test_model_local_functions_are_inlined():
    text = """<ir_version: 8, opset_import: ["": 17, "my": 1]> agraph (float[N] x) => (float[N] y) { y = my.F(x) }
        <domain: "my", opset_import: ["": 17]> F (a) => (b) { c = Relu(a) b = Neg(c) }"""
    assert [node.op_type for node in io.load(onnx.parser.parse_model(text)).graph] == ["Relu", "Neg"]


def test_external_data_is_read(tmp_path):
    loaded = io.load(with_weights_beside(tmp_path))
    x = random(2, 3)
    assert np.array_equal(Inference(loaded)({"x": x})["y"], outputs(MODEL, {"x": x})[0])


def test_model_read_from_external_data_is_saved_whole(tmp_path):
    path = with_weights_beside(tmp_path)
    io.save(io.load(path), tmp_path / "whole.onnx")
    (tmp_path / "weights.bin").unlink()
    assert io.to_proto(io.load(tmp_path / "whole.onnx")).graph == io.to_proto(io.load(MODEL)).graph


def test_missing_external_data_is_refused(tmp_path):
    path = with_weights_beside(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"'weights\.bin' of initializer 'w' is missing"):
        io.load(path)


@pytest.mark.parametrize("size", [0, 10, 47])
def test_external_data_that_is_cut_off_is_refused(tmp_path, size):
    path = with_weights_beside(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match=r"'weights\.bin' of initializer 'w' is cut off"):
        io.load(path)


def edited(path: Path, **entries: str) -> Path:
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../weights.bin", "{}/weights.bin", "a/../../weights.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    (tmp_path / "models").mkdir()
    path = edited(with_weights_beside(tmp_path / "models"), location=location.format(tmp_path))
    with pytest.raises(InputError, match="outside the model's folder"):
        io.load(path)


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "models").mkdir()
    path = with_weights_beside(tmp_path / "models")
    (tmp_path / "models" / "weights.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "models" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(InputError, match="outside the model's folder"):
        io.load(path)


@pytest.mark.parametrize("entry", [{"offset": "-4"}, {"length": "8"}, {"offset": "many"}])
def test_external_data_described_wrongly_is_refused(tmp_path, entry):
    with pytest.raises(InputError, match="has an incorrect location of its data"):
        io.load(edited(with_weights_beside(tmp_path), **entry))


def test_external_data_of_a_constant_node_is_checked_too(tmp_path):
    proto = model(
        "(float[N,3] x) => (float[N,4] y) { c = Constant<value = float[1] {1.0}>() y = MatMul(x, w) }", w=random(3, 4)
    )
    tensor = proto.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="outside the model's folder"):
        io.load(tmp_path / "m.onnx")


def test_model_in_memory_without_its_external_data_is_refused(tmp_path):
    proto = onnx.load(with_weights_beside(tmp_path), load_external_data=False)
    with pytest.raises(InputError, match="not loaded; give the model's path"):
        io.load(proto)


def test_model_in_memory_is_saved_as_it_stands(tmp_path):
    io.save(MODEL, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == MODEL.SerializeToString()


def test_large_weights_are_saved_beside_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "TOO_LARGE", 10)
    large = model("(float[N,300] x) => (float[N,300] y) { y = MatMul(x, w) }", w=random(300, 300))
    io.save(large, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").stat().st_size >= 360_000
    assert np.array_equal(io.load(tmp_path / "m.onnx").graph.initializers["w"].const_value.numpy(), random(300, 300))


def test_large_model_is_run_by_way_of_a_file(monkeypatch):
    monkeypatch.setattr(external, "TOO_LARGE", 10)
    x = random(2, 3)
    assert np.array_equal(Inference(MODEL)({"x": x})["y"], outputs(MODEL, {"x": x})[0])


def test_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = saved(tmp_path / "m.onnx")
    before = path.read_bytes()

    def interrupted(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(external, "TOO_LARGE", 10)
    monkeypatch.setattr(ir, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.save(MODEL, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_a_clear_error(tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(external, "TOO_LARGE", 10)
    monkeypatch.setattr(ir, "save", full)
    with pytest.raises(InputError, match="No space left on device"):
        io.save(MODEL, tmp_path / "m.onnx")


FUNCTIONS = """<ir_version: 8, opset_import: ["": 17, "f": 1]> agraph (float[N,8] x) => (float[N,8] y) { y = f.A(x) }"""
RECURSIVE = {
    "one": '<domain: "f", opset_import: ["": 17, "f": 1]> A (a) => (b) { b = f.A(a) }',
    "two": """<domain: "f", opset_import: ["": 17, "f": 1]> A (a) => (b) { b = f.B(a) }
        <domain: "f", opset_import: ["": 17, "f": 1]> B (a) => (b) { b = f.A(a) }""",
}


@pytest.mark.parametrize("functions", RECURSIVE.values(), ids=RECURSIVE)
def test_functions_that_call_each_other_in_a_circle_are_refused(functions):
    with pytest.raises(InputError, match=r"model: .*f::A"):
        io.load(onnx.parser.parse_model(f"{FUNCTIONS}\n{functions}"))


def test_model_without_outputs_is_refused():
    proto = model("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    del proto.graph.output[:]
    with pytest.raises(InputError, match="it has no outputs"):
        io.load(proto)


def test_tensor_that_is_shorter_than_its_shape_is_refused_wherever_it_stands():
    proto = model("(float[N,3] x) => (float[N,3] y) { c = Constant<value=float[3]{1.0,2.0,3.0}>() y = Add(x, c) }")
    proto.graph.node[0].attribute[0].t.dims[0] = 5
    with pytest.raises(InputError, match="does not have the size that its shape says"):
        io.load(proto)


@pytest.fixture
def cache(tmp_path):
    """A snapshot in the layout of the Hugging Face cache: files are links to blobs named by their content."""
    root = tmp_path / "models--a--b"
    snapshot = root / "snapshots" / "abc" / "onnx"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    proto = model("(float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", w=random(8, 3))
    onnx.save(proto, root / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    for name in ("model.onnx", "model.onnx_data"):
        (root / name).rename(root / "blobs" / f"hash of {name}")
        (snapshot / name).symlink_to(f"../../../blobs/hash of {name}")
    return snapshot


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "mapped"])
def test_external_data_behind_the_links_of_the_hugging_face_cache_is_read(cache, large, monkeypatch):
    if large:
        monkeypatch.setattr(external, "TOO_LARGE", 10)
        monkeypatch.setattr(external, "MAPPED_ABOVE", 10)
    loaded = io.load(cache / "model.onnx")
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), random(8, 3))


def test_links_that_lead_elsewhere_are_refused(cache, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(1000))
    (cache / "model.onnx_data").unlink()
    (cache / "model.onnx_data").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is outside the model's folder"):
        io.load(cache / "model.onnx")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "", ".", "w/" * 3000], ids=["NUL", "long", "none", "dot", "deep"])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    proto = model("(float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", w=random(8, 3))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = name
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"of initializer 'w' is missing") as error:
        io.load(tmp_path / "m.onnx")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("nodes_too", [False, True])
def test_default_domain_may_be_called_by_its_long_name(nodes_too):
    proto = model("(float[N,3] x) => (float[N,2] y) { m = MatMul(x, w) y = Relu(m) }", w=random(3, 2))
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node if nodes_too else ():
        node.domain = "ai.onnx"
    loaded = io.load(proto)
    assert loaded.opset_imports == {"": 17}
    assert {node.domain for node in loaded.graph} == {""}


@pytest.mark.parametrize("pairs", [False, True])
def test_sparse_initializer_is_read_as_a_dense_one(pairs):
    weight = np.where(random(3, 2) > 0, random(3, 2), 0).astype(np.float32)
    proto = model("(float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }")
    flat = np.flatnonzero(weight)
    indices = np.argwhere(weight) if pairs else flat
    proto.graph.sparse_initializer.append(
        onnx.helper.make_sparse_tensor(
            numpy_helper.from_array(weight.reshape(-1)[flat], "w"),
            numpy_helper.from_array(indices, "w_indices"),
            [3, 2],
        )
    )
    loaded = io.load(proto)
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), weight)


def test_sparse_initializer_too_large_to_write_out_is_refused():
    proto = model("(float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }")
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.array([0]), "i")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2**20, 2**20]))
    with pytest.raises(InputError, match=r"sparse initializer 'w' of shape .* is too large"):
        io.load(proto)


def test_operator_of_a_later_opset_is_refused():
    proto = model("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }")
    proto.graph.node[0].op_type = "Swish"
    with pytest.raises(InputError, match="operators Swish do not exist in opset 17"):
        io.load(proto)
