"""Text recognition (PP-OCRv6, small): pictures of single words in English prose, to be read letter by letter."""

from __future__ import annotations

import re
from pydoc_data import topics

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.packages import FOLDER
from tools.real_models.model import Batch, Data, Examples

HEIGHT, MARGIN = 48, 8
BATCH = 8


def data(train: int, test: int) -> Data:
    """Words of the Python reference, each of them either in the training or in the test set."""
    found = sorted(set(re.findall(r"\b[A-Za-z]{3,11}\b", " ".join(topics.topics.values()))))
    words = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    return Data(_batches(words[test:][:train], seed=1), _batches(words[:test], seed=2), _share_read)


def _batches(words: list[str], seed: int) -> list[Examples]:
    """Words of about the same length together, so that little of a batch is padding; the batches in random order."""
    random = np.random.default_rng(seed)
    pictures = sorted(((_picture(word, random), word) for word in words), key=lambda pair: pair[0].shape[1])
    cuts = [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]
    return [Examples(_stacked([p for p, _ in cuts[i]]), [w for _, w in cuts[i]]) for i in random.permutation(len(cuts))]


def _picture(word: str, random: np.random.Generator) -> NDArray[np.float32]:
    """A word in dark on light or light on dark, of varying size, a little turned and blurred: [3, HEIGHT, W] in [-1, 1]."""
    font = ImageFont.load_default(size=float(random.uniform(22, 34)))
    width = int(font.getlength(word)) + 2 * MARGIN
    dark, light = int(random.integers(0, 90)), int(random.integers(150, 256))
    ground, ink = (light, dark) if random.random() < 0.8 else (dark, light)
    image = Image.new("L", (width, HEIGHT), ground)
    ImageDraw.Draw(image).text((MARGIN, HEIGHT // 2), word, fill=ink, font=font, anchor="lm")
    image = image.rotate(float(random.uniform(-2, 2)), Image.Resampling.BICUBIC, fillcolor=ground)
    image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.0))))
    noisy = np.asarray(image, np.float32) + random.normal(0, 6, (HEIGHT, width))
    scaled = np.clip(noisy, 0, 255) / 127.5 - 1
    return np.repeat(scaled[None].astype(np.float32), 3, axis=0)


def _stacked(pictures: list[NDArray[np.float32]]) -> Batch:
    """Pictures side by side in a batch, padded with 0 to a multiple of 8."""
    width = -(-max(p.shape[2] for p in pictures) // 8) * 8
    padded = [np.pad(p, ((0, 0), (0, 0), (0, width - p.shape[2]))) for p in pictures]
    return {"x": np.stack(padded)}


def _share_read(outputs: list[NDArray[np.float32]], labels: list[str]) -> float:
    """Share of words that are read without an error, in percent."""
    (entry,) = onnx.load(FOLDER / "ocr.onnx", load_external_data=False).metadata_props
    alphabet = ["", *entry.value.split("\n"), " "]
    read = [_decoded(row, alphabet) for output in outputs for row in output]
    return 100 * float(np.mean([a == b for a, b in zip(read, labels, strict=True)]))


def _decoded(scores: NDArray[np.float32], alphabet: list[str]) -> str:
    """Decodes CTC by the best path (Graves et al. 2006): repeated letters are one, blanks (0) separate."""
    best = scores.argmax(axis=1)
    kept = best[np.flatnonzero(np.diff(best, prepend=0))]
    return "".join(alphabet[i] for i in kept)
