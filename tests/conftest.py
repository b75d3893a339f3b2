"""Fixtures that every test relies on."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _own_log(monkeypatch):
    """Keeps the command line's settings for its own process from other tests."""
    logger = logging.getLogger("onnxqat")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, name, getattr(logger, name))


def pytest_collection_modifyitems(items):
    """Puts the slow tests first, so that the longest file does not run alone at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
