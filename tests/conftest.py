"""Fixtures that every test relies on."""

import logging
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from onnxqat.runtime import engines
from onnxqat.verification import run
from tests.command_line import status_of

# A busy machine fails nothing, and each run tries the same examples; `tools.fuzz` looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_addoption(parser):
    parser.addoption("--engine", choices=("auto", "runtime"), default="auto", help="what the engine `auto` means")


@pytest.fixture(autouse=True)
def _engine(request, monkeypatch):
    """Hides the kernels of the training build, as any other onnxruntime lacks them."""
    if request.config.getoption("--engine") == "runtime":
        monkeypatch.setattr(engines, "_has_training_kernels", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def _short_timing():
    """Has `verify` time models for a moment: no test is about how fast they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TIMING_SECONDS", 0.02)
        yield


@pytest.fixture(autouse=True)
def _own_log(monkeypatch):
    """Keeps the command line's settings for its own process from other tests."""
    logger = logging.getLogger("onnxqat")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in this process; returns exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = status_of(*arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def pytest_collection_modifyitems(items):
    """Puts the slow tests first, so that the longest file does not run alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
