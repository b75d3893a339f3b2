"""The peers' environment."""

from __future__ import annotations

import subprocess
import sys

from tools.benchmark_few_bits.results import ROOT

#: Alone: torchvision, which it depends on, serves operators that no network here has, and not every build of it fits torch.
CONVERTER = "onnx2torch==1.5.15"
FOLDER, REQUIREMENTS = ROOT / ".venv-few-bits", ROOT / "tools/requirements-few-bits.txt"


def peers_python() -> str:
    """Interpreter of the peers' environment, which is made if it is not there or its requirements have changed."""
    python, made = FOLDER / "bin/python", FOLDER / "requirements.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", CONVERTER], check=True)
        made.write_text(wanted, encoding="utf-8")
    return str(python)
