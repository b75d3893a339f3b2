"""Runs the core of the test suite on the oldest and the newest Python that can be had, in both engines.

    python -m tools.core          # in environments of their own, made by uv, without any framework
    python -m tools.core --here   # in the one that runs it

A Python that neither this machine has nor uv can fetch is named and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The first of each that can be had.
WANTED = (("3.10",), ("3.14", "3.13"))
#: Insertion, derivatives, training, folding, the command line; none of these files imports a framework.
CORE = (
    "tests/insertion/preparation/test_gemm.py",
    "tests/insertion/test_tied.py",
    "tests/insertion/test_transforms.py",
    "tests/autodiff/test_coverage.py",
    "tests/training/test_trainer.py",
    "tests/folding/test_clips.py",
    "tests/cli/test_cli.py",
)
TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the core with each Python, and if all of them train, in the other engine too; returns how many runs failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", action="store_true", help="run it in this environment")
    here = parser.parse_args(arguments).here
    made = [Path(sys.executable)] if here else [next(filter(None, map(environment, some)), None) for some in WANTED]
    pythons = [python for python in made if python is not None]
    failed = sum(fails(python, "auto") for python in pythons)
    return failed + (fails(pythons[0], "runtime") if pythons and all(map(trains, pythons)) else 0)


def fails(python: Path, engine: str) -> bool:
    """Runs the core with an interpreter, where the engine `auto` means the one named; returns whether it failed."""
    print(f"core: {python}, engine {engine}", flush=True)
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}  # for the processes that tests start
    return subprocess.run([python, *_pytest(engine)], cwd=ROOT, env=variables, check=False).returncode != 0


def environment(version: str) -> Path | None:
    """The interpreter of an environment with what the core needs; None, and a line that says so, where it cannot be made."""
    folder = ROOT / f".venv-core-{version}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = _uv("venv", "--allow-existing", "--python", version, folder)
    if done.returncode == 0:
        done = _uv("pip", "install", "--python", python, "-c", "constraints.txt", "-r", "pyproject.toml", *TOOLS)
    if done.returncode == 0:
        return python
    said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
    print(f"core: Python {version} cannot be had, so nothing is run there ({said[:200]})", flush=True)
    return None


def trains(python: Path) -> bool:
    """Whether an interpreter has the build of ONNX Runtime that trains, which is then the engine `auto`."""
    code = "from importlib.metadata import version; version('onnxruntime-training-cpu')"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def _pytest(engine: str) -> list[str]:
    return ["-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", "not slow", "--engine", engine, *CORE]


def _uv(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Calls uv, which is told where pyenv keeps its Pythons: it looks for them on the path alone."""
    places = [str(path) for path in Path.home().glob(".pyenv/versions/*/bin")]
    variables = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), *places])}
    return subprocess.run(
        [sys.executable, "-m", "uv", "--quiet", *arguments], cwd=ROOT, env=variables, capture_output=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
