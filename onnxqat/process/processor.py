"""The processor, in words, with what decides on its integers."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Its name, its cores, and on x86 whether it has VNNI: `Intel(R) Xeon(R) Processor, 2 cores, with VNNI`."""
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = named.group(1) if named else platform.processor() or platform.machine()
    parts = [name, f"{os.cpu_count()} cores"]
    if re.search(r"^flags\s*:", text, re.MULTILINE):
        parts.append("with VNNI" if re.search(r"\bavx(512)?_vnni\b", text) else "without VNNI")
    return ", ".join(parts)
