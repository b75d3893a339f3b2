import json
from pathlib import Path

from onnxqat.config import Config
from onnxqat.config_parts import Select
from onnxqat.data.paths import Form
from onnxqat.data.pixels import Pixels
from onnxqat.pipeline.effective import effective
from onnxqat.pipeline.request import Data, Judge, Training


def augmented(batch):
    return batch


def test_settings_of_a_call_are_written_whole_and_quantization_is_read_back(tmp_path):
    config = Config(weight_bits=4, ignore=(Select(pattern="head"),))
    data = Data("photos", form=Form(pixels=Pixels(preset="imagenet", size=(8, 9))))
    training = Training(["distill"], lr=1e-4, teacher=Path("float.onnx"), augment=augmented)
    found = json.loads(effective(config, data, training, Judge(metric="f1")))
    assert found["data"]["form"]["pixels"]["size"] == [8, 9]
    assert found["training"]["loss"] == ["distill"]
    assert (found["training"]["teacher"], found["training"]["augment"]) == ("float.onnx", "augmented")
    assert found["judge"]["metric"] == "f1"
    path = tmp_path / "c.json"
    path.write_text(json.dumps(found["quantization"]))
    assert Config.from_json(path) == config
