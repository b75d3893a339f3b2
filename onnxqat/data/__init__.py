"""Batches of samples: where they come from, what is in them, and what their labels say."""

from onnxqat.data.image_folders import images
from onnxqat.data.indexed import Indexed
from onnxqat.data.paths import read
from onnxqat.data.rows import Arrays, Rows
from onnxqat.data.sources import Batches, Source, Transform

__all__ = ["Arrays", "Batches", "Indexed", "Rows", "Source", "Transform", "images", "read"]
