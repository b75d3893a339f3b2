"""What every test may rely on."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _own_log(monkeypatch):
    """What the command line sets up for its own process does not reach other tests."""
    logger = logging.getLogger("onnxqat")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))


def pytest_collection_modifyitems(items):
    """The slow ones come first, so that the longest file does not run alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
