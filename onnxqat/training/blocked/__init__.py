"""Blocked layout: convolutions of a training graph on the kernels that ONNX Runtime otherwise keeps for constant weights.

In the blocked layout, channels stand in groups of `block` (8 or 16, the machine's vector) innermost in memory: [N, C/block, H, W,
block]. A value keeps its declared shape [N, C, H, W]; only the order of its elements differs. So whatever treats all elements
alike (elementwise operators, quantizers of one scale, sums) runs on it unchanged.
"""
