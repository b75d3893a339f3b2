import subprocess
import sys

import onnxqat
from onnxqat.graph.temporary import beside, clear
from tests.models import model, random
from tests.processes import started

WRITING = """
import sys, time
from pathlib import Path
from onnxqat.graph.temporary import beside
with beside(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(tmp_path):
    path = tmp_path / "model.onnx"
    with started([sys.executable, "-c", WRITING, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        clear(tmp_path, "model.onnx")
        (living,) = tmp_path.iterdir()
        assert (living / "half").exists()
    assert living.exists()
    with beside(path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


def test_the_next_write_of_a_model_removes_what_a_killed_one_left(tmp_path):
    proto = model("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=random(4, 3))
    left = tmp_path / ".model.onnx.0123abcd.tmp"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    onnxqat.save(proto, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
