"""Debian's short descriptions of packages, with the section of each."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tools.packages import FOLDER, FetchError

SECTIONS = ("science", "sound", "graphics", "games", "fonts", "mail", "net", "editors", "video", "database")
SHORTEST = 20
#: File that they are written to.
FILE = FOLDER / "descriptions.tsv"


def fetch_descriptions() -> Path:
    """Writes the descriptions of packages in `SECTIONS` that apt knows of: lines of section, tab, description."""
    if FILE.exists():
        return FILE
    command = ["apt-cache", "dumpavail"]
    known = shutil.which(command[0]) is not None
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout if known else ""
    found = [_entry(stanza) for stanza in listed.split("\n\n")]
    lines = sorted({entry for entry in found if entry is not None})
    if len(lines) < 1000:
        raise FetchError(f"apt-cache dumpavail lists {len(lines)} descriptions; run `apt-get update`, on Debian")
    FILE.write_text("\n".join(lines), encoding="utf-8")
    return FILE


def _entry(stanza: str) -> str | None:
    fields = dict(re.findall(r"^(Section|Description): (.*)$", stanza, re.MULTILINE))
    kept = fields.get("Section") in SECTIONS and len(fields.get("Description", "")) >= SHORTEST
    return f"{fields['Section']}\t{fields['Description']}" if kept else None
