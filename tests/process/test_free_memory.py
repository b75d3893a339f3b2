from pathlib import Path

import pytest

from onnxqat.process.free_memory import free_memory

MEMINFO = "MemTotal: 100 kB\nMemAvailable: 50 kB\n"


def system(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 51_200, id="none"),
        pytest.param(
            {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "9\n"}, 51_200, id="no limit"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "30000\n",
                "sys/fs/cgroup/a/memory.current": "20000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 15000\ninactive_file 5000\n",
            },
            15_000,
            id="version 2, of the group around",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "10000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "20000\n",
            },
            0,
            id="version 1, seen from inside a container",
        ),
    ],
)
def test_groups_bound_what_the_system_has(tmp_path, files, expected):
    assert free_memory(system(tmp_path, {"proc/meminfo": MEMINFO, **files})) == expected


def test_this_machine_has_some_left_or_does_not_say():
    found = free_memory()
    assert found is None or found > 0
