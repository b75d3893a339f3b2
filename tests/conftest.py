"""What every test may rely on."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _own_log(monkeypatch):
    """What the command line sets up for its own process does not reach other tests."""
    logger = logging.getLogger("onnxqat")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
