"""Execution providers of ONNX Runtime under short names, and the memory in which arrays lie for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from onnxqat.errors import InputError

_SUFFIX = "ExecutionProvider"
#: Kinds of memory whose addresses can be reckoned with, so that many arrays lie in one; for others ONNX Runtime copies each.
_ADDRESSED = frozenset({"cuda", "cann"})


def listed() -> list[str]:
    """Short names of the execution providers of the installed ONNX Runtime, sorted."""
    return sorted(map(_short, ort.get_available_providers()))


def _short(provider: str) -> str:
    return provider.removesuffix(_SUFFIX).lower()


@dataclass(frozen=True)
class Device:
    """Device on which sessions run; what a provider has no kernels for runs on the CPU.

    Attributes:
        name: short name of the execution provider: "cuda" for `CUDAExecutionProvider`.
        number: which of the provider's devices.
    """

    name: str = "cpu"
    number: int = 0

    @classmethod
    def named(cls, provider: str) -> Device:
        """The device of a provider, by its short or full name in any case; under torchrun, that of this process (`LOCAL_RANK`).

        Raises:
            InputError: the installed ONNX Runtime does not list it.
        """
        name = provider.lower().removesuffix(_SUFFIX.lower())
        if name not in listed():
            raise InputError(
                f"provider {provider!r}: is not installed, onnxruntime {ort.__version__} lists {', '.join(listed())}; "
                "use one of these, or install the build of onnxruntime that has it (for cuda: onnxruntime-gpu, alone)"
            )
        if name == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN as pip installs them
        return cls(name, int(os.environ.get("LOCAL_RANK", 0)) if name in _ADDRESSED else 0)

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor itself, which runs on arrays where they are."""
        return self.name == "cpu"

    @property
    def memory(self) -> tuple[str, int]:
        """Kind and number of the memory that arrays are bound in."""
        return (self.name, self.number) if self.name in _ADDRESSED else ("cpu", 0)

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of the provider."""
        names: list[str] = ort.get_available_providers()
        return next(name for name in names if _short(name) == self.name)

    @property
    def providers(self) -> list[Any]:
        """Providers for a session, in order of preference, as ONNX Runtime takes them."""
        if self.is_cpu:
            return [self.provider]
        options = {"device_id": str(self.number)} if self.name in _ADDRESSED else {}
        return [(self.provider, options), Device().provider]

    def check_started(self, providers: Sequence[str]) -> None:
        """Raises InputError where this device's provider is not among those of a session: ONNX Runtime goes on without it."""
        if self.provider not in providers:
            raise InputError(
                f"provider {self.name!r}: onnxruntime {ort.__version__} lists it, but cannot start it; install driver and "
                "libraries (for cuda: pip install 'onnxruntime-gpu[cuda,cudnn]')"
            )


#: The processor.
CPU = Device()
