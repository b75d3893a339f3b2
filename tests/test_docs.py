"""What README and pages show runs, as they stand, in an empty folder; their links lead somewhere; quoted messages exist."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import readme, run_page

ROOT = Path(__file__).parents[1]
README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ALL = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *PAGES]
FILES = ["model.onnx", "train.npz", "validation.npz"]
#: What the README's reader has.
READERS_DATA = """
import numpy as np
train_images, train_labels = (np.load("train.npz")[name][:256] for name in ("image", "label"))
validation_images, validation_labels = (np.load("validation.npz")[name] for name in ("image", "label"))
"""


def _runs(page: Path) -> bool:
    return any(block.kind in run_page.RUN for block in run_page.blocks(page))


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the quickstart's model and data."""
    folder = tmp_path_factory.mktemp("example")
    program = next(block.text for block in run_page.blocks(QUICKSTART) if block.kind == "python")
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(program, "quickstart.md", "exec"), {})
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def folder(example, tmp_path, monkeypatch):
    for name in FILES:
        (tmp_path / name).write_bytes((example / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
@pytest.mark.parametrize("page", [page for page in PAGES if _runs(page)], ids=_id)
def test_blocks_of_the_page_run(page, folder):
    for package in run_page.needs(page):
        pytest.importorskip(package)
    run_page.run(page)


def test_readme_runs_in_an_empty_folder_from_the_installed_wheel(folder, tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed: the wheel cannot be built without the network")
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for name in ("onnxqat", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", site, source], check=True)
    (folder / "readers_data.py").write_text(READERS_DATA)
    command = [sys.executable, ROOT / "tools" / "run_page.py", "--given", "readers_data.py", README]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert str(site) in ran.stderr.splitlines()[0]
    assert "trained, deployed" in ran.stdout
    assert (site / "onnxqat" / "py.typed").exists()
    assert not (site / "tests").exists()


@pytest.mark.parametrize("page", ALL, ids=_id)
def test_every_block_is_of_a_kind_that_is_run_or_shown(page):
    for block in run_page.blocks(page):
        assert block.kind in run_page.RUN | run_page.SHOWN, f"{page}:{block.line}"


@pytest.mark.parametrize("page", ALL, ids=_id)
def test_links_lead_to_files(page):
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link


def test_targets_and_extras_that_pages_name_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in ALL)
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make (\w+)`|^ +make (\w+)", text, re.M)) <= {(t, "") for t in targets} | {
        ("", t) for t in targets
    }
    optional = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert set(re.findall(r"onnxqat\[(\w+)\]", text)) <= set(re.findall(r"^(\w+) = \[", optional, re.M))


def test_files_of_the_checkout_that_pages_name_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in ALL)
    named = set(re.findall(r"\b((?:onnxqat|tests|tools|models|docs)/[\w/.]+\.\w+)\b", text))
    for module in re.findall(r"python -m (tools[\w.]+)", text):
        path = module.replace(".", "/")
        named.add(f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py")
    written = {block.title for page in ALL for block in run_page.blocks(page)}  # what a walk makes
    assert len(named) > 30
    assert {name for name in named - written if not (ROOT / name).exists()} == set()


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    said = " ".join(_texts())
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    parts = [part.strip() for row in rows for quoted in re.findall("`([^`]+)`", row) for part in quoted.split("…")]
    assert len(rows) > 30
    assert [part for part in parts if part and part not in said] == []


def _texts() -> list[str]:
    """All text in the package's source, with what is filled in left out."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "onnxqat").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    joined = ["".join(_constants(node.values)) for node in nodes if isinstance(node, ast.JoinedStr)]
    return joined + _constants(nodes)


def _constants(nodes: list[ast.AST]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_digest_of_the_readme_is_that_of_the_benchmarks():
    table = readme.section("real-models", readme.BENCHMARKS)
    assert readme.section("real-models", README) == readme.digest(table)


def test_hooks_before_a_commit_are_the_linters_of_make_test():
    recipe = (ROOT / "Makefile").read_text().partition("\ntest:")[2].partition("\n\n")[0]
    hooks = re.findall(r"entry: \.venv/bin/([^,]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == re.findall(r"^\t\$\(BIN\)/(.+)$", recipe, re.M)[: len(hooks)] != []
