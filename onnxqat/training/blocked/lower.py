"""The pass: gives convolutions of a training graph blocked kernels, and keeps values between them in the blocked layout."""

from __future__ import annotations

import logging

import onnx_ir as ir

from onnxqat.autodiff.kernels.table import define
from onnxqat.graph.edit import forget_names, fresh_name
from onnxqat.graph.nesting import captured_values, subgraphs
from onnxqat.graph.ops import BLOCKED, Ops
from onnxqat.training.blocked import choice, gradients, weights
from onnxqat.training.blocked.convolution import Convolution, Gradient, Pair, forward_of, gradient_of
from onnxqat.training.blocked.max_pool import Pooling, by_comparison, is_gradient, pooling_of
from onnxqat.training.blocked.order import disregards_order, gives_data, moves_blocks, results_in_order

log = logging.getLogger(__name__)


def lower(model: ir.Model, block: int) -> None:
    """Rewrites the graph, if that pays; its inputs and outputs keep the plain layout, its nodes their order.

    Args:
        model: a training or evaluation graph in its order of execution, quantizers as calls.
        block: channels of a block.
    """
    lowering = _Lowering(model.clone(), block)
    graph = lowering.run()
    if lowering.gain > 0:
        model.graph = graph
        define(model)
    log.debug("blocked layout: %d convolutions, %s", lowering.lowered, "taken" if lowering.gain > 0 else "does not pay")


class _Lowering:
    """The state of the pass.

    Attributes:
        lowered: number of convolutions, forward or backward, that became blocked.
        gain: estimate of what is won for each sample, in picoseconds.
    """

    def __init__(self, model: ir.Model, block: int) -> None:
        self._model, self._graph, self._block = model, model.graph, block
        self._opset = model.graph.opset_imports[""]
        self._blocked: set[ir.Value] = set()  # values that are in the blocked layout
        self._other: dict[ir.Value, ir.Value] = {}  # the same values in the other layout
        self._pools: dict[ir.Node, tuple[Pooling, ir.Value]] = {}  # what replaces maximum poolings
        self.lowered, self.gain = 0, 0.0
        forget_names(self._graph)

    def run(self) -> ir.Graph:
        """Rewrites the graph and returns it."""
        for node in list(self._graph):
            self._visit(node)
        self._finish()
        self._graph.opset_imports[BLOCKED] = 1
        return self._graph

    def _visit(self, node: ir.Node) -> None:
        """Lowers a node, or feeds it what it understands."""
        forward, backward = forward_of(node), gradient_of(node)
        if forward is not None and self._lower_forward(node, forward):
            return
        if self._lower_pooling_backward(node) if is_gradient(node) else self._lower_pooling(node):
            return
        if backward is not None:
            self._lower_backward(node, *backward)
        elif node.op_type == "GlobalAveragePool" and not node.domain and node.inputs[0] in self._blocked:
            node.domain = BLOCKED  # of one pixel, both layouts are the same
        elif not self._stays_blocked(node) and node.op_type not in ("Shape", "Size"):
            self._feed_plain(node)

    def _finish(self) -> None:
        """Gives graph outputs the plain layout."""
        for index, value in enumerate(self._graph.outputs):
            if value in self._blocked:
                op = Ops(self._opset)
                plain = self._reordered(op, value)
                self._graph.extend(op.nodes)
                value.name, plain.name = f"{value.name}/blocked", value.name
                self._graph.outputs[index] = plain

    def _lower_forward(self, node: ir.Node, conv: Convolution) -> bool:
        x, weight = node.inputs[:2]
        reads_plain = conv.reads_plain(self._block)
        fits = (reads_plain or conv.fits(self._block)) and choice.forward_pays(conv, node.outputs[0])
        if not fits or x is None or weight is None:
            return False
        op = Ops(self._opset)
        data = self._plain(op, x) if reads_plain else self._in_blocks(op, x)
        ordered = weights.forward(op, self._plain(op, weight), conv, self._block)
        self._insert(node, op)
        node.domain = BLOCKED
        node.replace_input_with(0, data)
        node.replace_input_with(1, ordered)
        self._feed_plain(node, start=2)
        self._note(node.outputs[0], conv.outputs)
        self._count(conv, node.outputs[0], "forward")
        return True

    def _lower_backward(self, node: ir.Node, conv: Convolution, gradient: Gradient) -> None:
        dx, dw, db = gradient.results
        size = _size(gradient.x)
        if dx is not None and choice.data_gradient_pays(conv, size, self._block):
            self._count(conv, gradient.dy, "data")
            op = Ops(self._opset)
            dy, weight = self._in_blocks(op, gradient.dy), self._plain(op, gradient.weight)
            new = gradients.by_data(op, dy, weight, conv, size, self._block)
            self._replace(node, op, dx, new)
            self._note(new, conv.inputs)
        if dw is not None and conv.depthwise and conv.fits(self._block):
            self._count(conv, gradient.dy, "weight")
            op = Ops(self._opset)
            dy, x = self._in_blocks(op, gradient.dy), self._in_blocks(op, gradient.x)
            self._replace(node, op, dw, gradients.by_depthwise_weight(op, dy, x, conv))
            if db is not None:
                op = Ops(self._opset)
                self._replace(node, op, db, gradients.by_bias(op, dy, conv))
        if any(value.name and (value.uses() or value.is_graph_output()) for value in node.outputs):
            self._feed_plain(node)
        else:
            self._graph.remove(node, safe=True)

    def _lower_pooling(self, node: ir.Node) -> bool:
        """Lowers a maximum pooling of blocked data; the node stays until its gradient, which reads its places, is lowered too."""
        x = node.inputs[0] if node.inputs else None
        pool = pooling_of(node, _size(x)) if x is not None and x in self._blocked else None
        if x is None or pool is None:
            return False
        op, result = Ops(self._opset), node.outputs[0]
        y = op.one("MaxPool", x, _domain=BLOCKED, **pool.attributes)
        self._replace(node, op, result, y)
        self._note(y, _channels(x))
        self._pools[node] = pool, y
        self._remove_unread(node)
        return True

    def _lower_pooling_backward(self, node: ir.Node) -> bool:
        dy, places, x = node.inputs
        pool = None if places is None else places.producer()
        if dy is None or x is None or pool is None or pool not in self._pools:
            return False
        op = Ops(self._opset)
        geometry, y = self._pools[pool]
        dy, x = self._in_blocks(op, dy), self._in_blocks(op, x)
        new = by_comparison(op, dy, x, y, geometry, _channels(x), self._block)
        self._replace(node, op, node.outputs[0], new)
        self._note(new, _channels(x))
        self._graph.remove(node, safe=True)
        self._remove_unread(pool)
        return True

    def _remove_unread(self, node: ir.Node) -> None:
        if not any(value.uses() for value in node.outputs):
            self._graph.remove(node, safe=True)

    def _replace(self, node: ir.Node, op: Ops, old: ir.Value, new: ir.Value) -> None:
        """Lets the graph read `new` for the result `old` of the node, which then does not compute it any more."""
        new.type, new.shape = old.type, old.shape
        name, old.name = old.name, ""
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._insert(node, op)
        new.name = name

    def _note(self, value: ir.Value, channels: int) -> None:
        """Notes that a value is blocked, and its channels in its shape, which is not always known."""
        sizes = [None] * 4 if value.shape is None else list(value.shape)
        value.shape = ir.Shape([sizes[0], channels, *sizes[2:]])
        self._blocked.add(value)

    def _count(self, conv: Convolution, result: ir.Value, kind: str) -> None:
        self.lowered += 1
        self.gain += choice.gain(conv, result, kind)

    def _stays_blocked(self, node: ir.Node) -> bool:
        """Lets the node work on blocked data, if some of what it reads is blocked and it can."""
        data = next((value for value in node.inputs if value in self._blocked), None)
        if data is None:
            return False
        if disregards_order(node, data, self._model):
            read = [index for index, value in enumerate(node.inputs) if value is not None and gives_data(value, data)]
            results = results_in_order(node, data, self._model)
        elif moves_blocks(node, self._block):
            read = [index for index, value in enumerate(node.inputs) if value is not None and value.dtype == data.dtype]
            results = list(node.outputs)
        else:
            return False
        op = Ops(self._opset)
        for index in read:
            value = node.inputs[index]
            assert value is not None
            node.replace_input_with(index, self._in_blocks(op, value))
        self._insert(node, op)
        for value in results:
            value.shape = value.shape or data.shape
        self._blocked.update(results)
        return True

    def _feed_plain(self, node: ir.Node, start: int = 0) -> None:
        op = Ops(self._opset)
        for index, value in enumerate(node.inputs):
            if index >= start and value in self._blocked:
                node.replace_input_with(index, self._plain(op, value))
        for value in [value for value in captured_values(node) if value in self._blocked]:
            plain = self._plain(op, value)
            for graph in subgraphs(node):
                for inner in graph.all_nodes():
                    for index in [i for i, read in enumerate(inner.inputs) if read is value]:
                        inner.replace_input_with(index, plain)
        self._insert(node, op)

    def _plain(self, op: Ops, value: ir.Value) -> ir.Value:
        return self._reordered(op, value) if value in self._blocked else value

    def _in_blocks(self, op: Ops, value: ir.Value) -> ir.Value:
        return value if value in self._blocked else self._reordered(op, value)

    def _reordered(self, op: Ops, value: ir.Value) -> ir.Value:
        """The value in the other layout, made once. Only float32 can be reordered; masks and codes go by way of it."""
        if value in self._other:
            return self._other[value]
        dtype = value.dtype or ir.DataType.FLOAT
        channels = None if value.shape is None else value.shape[1]
        self.gain -= choice.REORDER * (channels if isinstance(channels, int) else 0) * choice.pixels(value)
        made = value if dtype == ir.DataType.FLOAT else op.Cast(value, to=ir.DataType.FLOAT)
        if value in self._blocked:
            made = op.one("ReorderOutput", made, _domain=BLOCKED, channels=channels)
        else:
            made = op.one("ReorderInput", made, _domain=BLOCKED)
        made = made if dtype == ir.DataType.FLOAT else op.Cast(made, to=dtype)
        made.type, made.shape = ir.TensorType(dtype), value.shape
        self._other[value], self._other[made] = made, value
        if value not in self._blocked:
            self._blocked.add(made)
        return made

    def _insert(self, node: ir.Node, op: Ops) -> None:
        for new in op.nodes:
            new.name = fresh_name(self._graph, f"{node.name}/{new.op_type}")
        self._graph.insert_before(node, op.nodes)


def _size(x: ir.Value) -> Pair | None:
    sizes = [] if x.shape is None else [size for size in list(x.shape)[2:] if isinstance(size, int)]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else None


def _channels(x: ir.Value) -> int:
    """Channels of a blocked value, which its shape says (see `_note`)."""
    assert x.shape is not None
    channels = x.shape[1]
    assert isinstance(channels, int)
    return channels
