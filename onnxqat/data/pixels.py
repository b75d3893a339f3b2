"""From an image to the numbers that a model takes: size, crop, scaling, layout, by a preset or by the user's own settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxqat.data.batch import Signature
from onnxqat.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FLOAT = np.dtype(np.float32)
ImageLayout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Preset:
    """Scaling with which well-known networks were trained: (pixel / 255 - mean) / std for each channel, red first.

    Attributes:
        mean: mean of each channel.
        std: deviation likewise.
        crop: share of the resized image, whose shorter side fits, that the middle square keeps.
        reverse: whether blue is the first channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    reverse: bool = False


_HALF = (0.5, 0.5, 0.5)
_MEAN = (0.485, 0.456, 0.406)
#: Presets by name, each with where its numbers are from.
PRESETS = {
    "imagenet": Preset(_MEAN, (0.229, 0.224, 0.225), 0.875),  # torchvision's models, and most of timm's
    "inception": Preset(_HALF, _HALF, 0.875),  # -1 to 1: Keras's MobileNet, Inception, Xception; many of timm's
    "caffe": Preset(
        tuple(m / 255 for m in (123.68, 116.779, 103.939)), (1 / 255,) * 3, 0.875, reverse=True
    ),  # Keras's ResNet, VGG
    "clip": Preset((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # OpenAI's CLIP
    "unit": Preset((0.0,) * 3, (1.0,) * 3),  # 0 to 1
    "bytes": Preset((0.0,) * 3, (1 / 255,) * 3),  # 0 to 255: the model scales by itself
}


@dataclass(frozen=True)
class Pixels:
    """Settings of how images become arrays; None: the preset or the model's input says it.

    Attributes:
        preset: name of a preset (see `PRESETS`).
        size: height and width.
        mean: mean of each channel, for pixels from 0 to 1, or one for all.
        std: deviation likewise.
        layout: "nchw" or "nhwc".
        crop: share of the resized image that the crop in its middle keeps.
        dtype: type of the input.
        channels: 1 (grey) or 3.

    Raises:
        InputError: a setting is out of range, or the preset is not known.
    """

    preset: str | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: ImageLayout | None = None
    crop: float | None = None
    dtype: np.dtype[Any] = FLOAT
    channels: int = 3

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise InputError(f"image preset {self.preset!r}: is not known; use {', '.join(PRESETS)}")
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"image size is {'x'.join(map(str, self.size))}; it must be at least 1")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InputError(f"image crop is {self.crop:g}; it must be above 0 and at most 1")
        if (self.mean is None) != (self.std is None):
            raise InputError("images: of mean and deviation one is given; give --image-mean and --image-std")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and (len(numbers) not in (1, 3) or not np.isfinite(numbers).all()):
                raise InputError(f"image {name} is {list(numbers)}; give one number, or one for each of 3 channels")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"image std is {list(self.std)}; it must be above 0")

    def fitted(self, name: str, signature: Signature) -> Pixels:
        """The settings, with what the input of that name says of size, layout, channels and type.

        Raises:
            InputError: the input is none for images, or neither it nor the settings say a size, a layout or a scaling.
        """
        dtype, shape = signature.inputs[name]
        if shape is not None and len(shape) != 4:
            raise InputError(f"input {name!r}: has {len(shape)} axes, images have 4; give arrays in an .npz file")
        layout = self.layout or _layout(name, shape)
        height, width, channels = (None, None, None) if shape is None else _sides(shape, layout)
        channels = 3 if channels is None else channels
        if channels not in (1, 3):
            raise InputError(
                f"input {name!r}: has {channels} channels, images have 1 or 3; give arrays in an .npz file"
            )
        size = self._size(name, height, width)
        if dtype.kind == "f" and self.preset is None and self.mean is None:
            raise InputError(
                f"input {name!r}: nothing says how its pixels are scaled; give --image-preset ({', '.join(PRESETS)}), or "
                "--image-mean and --image-std"
            )
        if dtype.kind != "f" and (self.mean is not None or self.preset not in (None, "bytes")):
            raise InputError(f"input {name!r}: takes pixels as {dtype}, unscaled; leave out preset, mean and deviation")
        return replace(self, size=size, layout=layout, dtype=dtype, channels=channels)

    def _size(self, name: str, height: int | None, width: int | None) -> tuple[int, int]:
        if self.size is None and (height is None or width is None):
            raise InputError(f"input {name!r}: takes images of any size; give --image-size")
        if self.size is None:
            assert height is not None
            assert width is not None
            return height, width
        if not all(wanted in (None, given) for wanted, given in zip((height, width), self.size, strict=True)):
            given, wanted = ("x".join(map(str, one)) for one in (self.size, (height, width)))
            raise InputError(f"image size is {given}, input {name!r} takes {wanted}; leave --image-size out")
        return self.size

    def array(self, image: Image) -> NDArray[Any]:
        """One image as the model takes it: [C, H, W] or [H, W, C]."""
        preset = PRESETS[self.preset or "bytes"]
        pixels = np.asarray(self._cut(image.convert("L" if self.channels == 1 else "RGB"), preset))
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        if self.dtype.kind == "f":
            mean, std = 255 * np.array(self.mean or preset.mean), 255 * np.array(self.std or preset.std)
            if self.channels == 1:
                mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
            pixels = (pixels - mean.astype(np.float32)) / std.astype(np.float32)
        if preset.reverse:
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout == "nchw" else pixels, self.dtype)

    def _cut(self, image: Image, preset: Preset) -> Image:
        """The middle of an image that is resized so that the crop fits into it, as torchvision does."""
        from PIL.Image import Resampling

        assert self.size is not None
        height, width = self.size
        factor = max(height / image.height, width / image.width) / (self.crop or preset.crop)
        large = max(round(image.width * factor), width), max(round(image.height * factor), height)
        resized = image if large == image.size else image.resize(large, Resampling.BILINEAR)
        left, top = round((large[0] - width) / 2), round((large[1] - height) / 2)
        return resized.crop((left, top, left + width, top + height))


def _layout(name: str, shape: tuple[int | None, ...] | None) -> ImageLayout:
    first, last = (shape is not None and shape[axis] in (1, 3) for axis in (1, -1))
    if first == last:
        raise InputError(
            f"input {name!r}: its shape does not show where the channels are; give --image-layout nchw or nhwc"
        )
    return "nchw" if first else "nhwc"


def _sides(shape: tuple[int | None, ...], layout: ImageLayout) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels of an input."""
    return (shape[2], shape[3], shape[1]) if layout == "nchw" else (shape[1], shape[2], shape[3])
