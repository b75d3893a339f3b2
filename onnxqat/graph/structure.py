"""Facts about the exported module that its graph does not hold; they are kept in the model's metadata."""

from __future__ import annotations

#: Key of the metadata that says how the framework's module returned its outputs, as JSON: the list of a dict's keys, in
#: the order of the model's outputs, or `"tuple"` for a tuple of one. Without it, one output is a tensor, several a tuple.
OUTPUTS = "onnxqat.outputs"
#: Key under which the names of the module's dropout layers are, which a graph for inference has no more; as a JSON list.
DROPOUT = "onnxqat.dropout"
