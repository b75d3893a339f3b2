import re
from pathlib import Path

from onnxqat.nncf.schema import keys
from onnxqat.nncf.unhonoured import REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "nncf.md"


def keys_of_the_table() -> list[str]:
    """Names in code in the first column of the page's table of keys."""
    (section,) = re.findall(r"^## Keys$(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    rows = section.split("| key | what it does here |\n| --- | --- |\n")[1].splitlines()
    return [name for row in rows if row.startswith("|") for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_table_of_keys_holds_those_that_are_honoured_or_refused_each_once():
    assert sorted(keys_of_the_table()) == sorted(keys() | set(REFUSED))
