"""Tables of runtimes, one file per target: what each fuses, carries and keeps in float.

Insertion, folding and verification read the same tables. Another target is a file here that defines `TARGET`, named as users name
the target.
"""

from collections.abc import Mapping
from importlib import import_module

from onnxqat import names
from onnxqat.names import RuntimeName
from onnxqat.targets.facts import Target

__all__ = ["TARGETS", "Target", "of_runtime"]

TARGETS: Mapping[str, Target] = {
    name: import_module(f"{__name__}.{name.replace('-', '_')}").TARGET for name in names.TARGETS
}


def of_runtime(runtime: RuntimeName) -> Target:
    """The table of a target that runs in a runtime; of several, all say the same of the runtime itself."""
    return next(one for one in TARGETS.values() if one.runtime == runtime)
