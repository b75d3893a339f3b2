"""A browser without a window, in which tests open pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Writes the browser that npm brought into the temporary folder, with libraries that a bare system lacks.
UNPACK = "import('@sparticuz/chromium').then(async (m) => console.log(await m.default.executablePath()))"


def _found() -> tuple[str, str]:
    """A browser's program, and the folder of libraries that it needs beside the system's."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (program := shutil.which(name)) is not None:
            return program, ""
    modules = Path(os.environ.get("ONNXQAT_NODE_MODULES", Path(__file__).parents[2] / ".node" / "node_modules"))
    if shutil.which("node") is None or not (modules / "@sparticuz").exists():
        pytest.skip(f"no browser: none is installed, and {modules} has none; `make .node/.done` fetches one")
    environment = {**os.environ, "AWS_EXECUTION_ENV": "AWS_Lambda_nodejs22.x"}
    ended = subprocess.run(
        ["node", "-e", UNPACK], cwd=modules, env=environment, capture_output=True, text=True, check=True
    )
    return ended.stdout.split()[-1], str(Path(tempfile.gettempdir(), "al2023", "lib"))


@contextmanager
def opened(page: Path, *, width: int = 1200, dark: bool = False) -> Iterator[tuple[object, list[str]]]:
    """The page in a browser once it is drawn, and what the browser complains of; it can reach no network."""
    api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
    program, libraries = _found()
    with api.sync_playwright() as playwright:
        environment = {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], env=environment)
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", offline=True
        )
        context.set_default_timeout(300_000)
        tab, complaints = context.new_page(), []
        tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on(
            "request",
            lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else complaints.append(asked.url),
        )
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        yield tab, complaints
        browser.close()
