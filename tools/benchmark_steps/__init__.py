"""Training steps, ours beside PyTorch's and NNCF's: `python -m tools.benchmark_steps --nncf-python … --runtime-python …`.

A step is forward, backward and AdamW on random data. Each contestant is a process of its own that waits for its turn (`turns`),
so that its peak of memory is its own, and interpreters may differ. Those that are compared take turns, so that other work on the
machine disturbs all alike; ratios are the medians of those of neighbouring turns.
"""
