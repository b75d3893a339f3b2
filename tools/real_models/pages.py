"""Page orientation (PP-LCNet): the angle, in quarter turns, of pictures of text pages."""

from __future__ import annotations

import textwrap
from pydoc_data import topics

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tools.real_models.model import Data, Examples, share_right

SHORT_SIDE, SIZE = 256, 224
#: Mean and deviation of ImageNet's pictures: red, green and blue.
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
BATCH = 8


def data(train: int, test: int) -> Data:
    """Pages from the topics of the Python reference, every topic either in the training or in the test set."""
    texts = [topics.topics[name] for name in sorted(topics.topics) if len(topics.topics[name]) > 600]
    cut = len(texts) // 2
    return Data(_batches(texts[:cut], train, seed=1), _batches(texts[cut:], test, seed=2), share_right)


def _batches(texts: list[str], count: int, seed: int) -> list[Examples]:
    random = np.random.default_rng(seed)
    batches = []
    for start in range(0, count, BATCH):
        turns = [int(t) for t in random.integers(0, 4, min(BATCH, count - start))]
        pages = [_normalized(_page(texts[random.integers(len(texts))], random), turn) for turn in turns]
        batches.append(Examples({"x": np.stack(pages)}, turns))
    return batches


def _page(text: str, random: np.random.Generator) -> Image.Image:
    """A page or a part of one: some paragraphs, a heading, sometimes a picture frame; ink and paper vary."""
    width, height = (int(n) for n in random.integers(360, 640, 2))
    size = int(random.integers(12, 26))
    paper, ink = int(random.integers(200, 256)), int(random.integers(0, 100))
    image = Image.new("L", (width, height), paper)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=float(size))
    start = int(random.integers(0, max(len(text) - 1500, 1)))
    lines = textwrap.wrap(" ".join(text[start:].split()), max(int(width / (0.52 * size)) - 4, 8))
    y = int(random.integers(size, 3 * size))
    for line in lines:
        if y > height - size:
            break
        draw.text((size, y), line, fill=ink, font=font)
        y += int(size * (2.6 if random.random() < 0.08 else 1.35))
    return image.rotate(float(random.uniform(-3, 3)), Image.Resampling.BICUBIC, fillcolor=paper)


def _normalized(page: Image.Image, turn: int) -> NDArray[np.float32]:
    """The middle of the page, turned clockwise by quarters, as the model's own package prepares it: [3, SIZE, SIZE]."""
    turned = page.rotate(-90 * turn, expand=True)
    scale = SHORT_SIDE / min(turned.size)
    width, height = (round(side * scale) for side in turned.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    small = turned.resize((width, height), Image.Resampling.LANCZOS).crop((left, top, left + SIZE, top + SIZE))
    colours = np.repeat(np.asarray(small, np.float32)[..., None] / 255, 3, axis=2)
    return np.ascontiguousarray(((colours - MEAN) / DEVIATION).transpose(2, 0, 1))
