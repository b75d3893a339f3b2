"""Batches of samples: where they come from, what is in them, and what their labels say."""

from onnxqat.data.rows import Arrays, Rows
from onnxqat.data.sources import Batches, Source, Transform

__all__ = ["Arrays", "Batches", "Rows", "Source", "Transform"]
