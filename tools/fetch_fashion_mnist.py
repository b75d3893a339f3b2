"""Fetches the whole of Fashion-MNIST (70,000 images) into .cache/fashion-mnist, from Debian's package of it.

python -m tools.fetch_fashion_mnist
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from models.fashion_mnist import FULL
from tools.packages import FetchError, status_of

PACKAGE = "dataset-fashion-mnist"
SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
MEMBERS = "usr/share/datasets/fashion-mnist"


def download(folder: Path) -> Path:
    """Downloads the package into `folder` and returns its path."""
    for client in ("apt-get", "dpkg"):
        if shutil.which(client) is None:
            raise FetchError(
                f"{client}: not found; this needs Debian or Ubuntu. Elsewhere put the four *-ubyte.gz files of "
                f"https://github.com/zalandoresearch/fashion-mnist into {FULL}"
            )
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    packages = list(folder.glob(f"{PACKAGE}_*.deb"))
    if done.returncode or not packages:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(f"apt-get download {PACKAGE}: {reason}; try `apt-get update` first")
    return packages[0]


def check(package: Path) -> None:
    """Refuses a package other than the one that the published accuracies belong to."""
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != SHA256:
        raise FetchError(f"{package.name}: its sha256 is {found}, not {SHA256}; Debian has another version now")


def fetch() -> Path:
    """Fetches the set unless it is there already; returns its folder."""
    if FULL.is_dir():
        return FULL
    FULL.parent.mkdir(parents=True, exist_ok=True)
    # Beside its goal, so that the last step is a rename and the set is there whole or not at all.
    with tempfile.TemporaryDirectory(dir=FULL.parent) as work:
        package = download(Path(work))
        check(package)
        subprocess.run(["dpkg", "-x", package, work], check=True)
        (Path(work) / MEMBERS).rename(FULL)
    return FULL


if __name__ == "__main__":
    sys.exit(status_of(lambda: print(fetch())))
