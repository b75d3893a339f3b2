import sys

import numpy as np
import pytest

from onnxqat.errors import MissingExtraError
from onnxqat.page import Chart, Graph, Section, Table, Text, render
from onnxqat.page.placing import placed
from tests.page.browser import opened

HOSTILE = "</script><script>throw 1</script><b>&amp;'\""


class Part:
    def sections(self):
        chart = Chart(HOSTILE, [{"type": "scatter", "x": [0, 1], "y": [2, 3], "name": HOSTILE}])
        table = Table(("layer", "dB"), [(HOSTILE, 3.0), ("b", None), ("c", 20.0), ("d", 1.0)], [[chart]] * 4)
        graph = Graph(["a", HOSTILE, "c"], ["a", HOSTILE, "c"], [(0, 1), (1, 2), (0, 2)], {"SNR, dB": [1.0, None, 3.0]})
        return [Section("one", "One", [Text(HOSTILE), chart]), Section("two", "Two", [table, graph])]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(HOSTILE, [Part()]), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1200, False)], ids=["phone, dark", "desk, light"])
def test_page_draws_everything_without_complaint_or_network_and_fits_its_width(page, width, dark):
    with opened(page, width=width, dark=dark) as (tab, complaints):
        assert complaints == []
        assert [head.inner_text() for head in tab.query_selector_all("h2")] == ["One", "Two"]
        assert len(tab.query_selector_all(".main-svg")) >= 2  # chart and graph
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, back[4:-1].split(", "))) < 300) == dark


def test_a_row_opens_its_charts_and_a_head_sorts_with_empty_cells_last(page):
    with opened(page) as (tab, complaints):
        tab.click("tr.opens")
        assert tab.is_visible("tr.details .main-svg")
        tab.click("th:nth-child(2)")
        shown = [row.inner_text() for row in tab.query_selector_all("tr.opens td:nth-child(2)")]
        assert shown == ["1", "3", "20", ""]
        assert complaints == []


def test_search_marks_the_nodes_that_it_finds(page):
    with opened(page) as (tab, complaints):
        tab.fill(".graph input", "c")
        sizes = tab.evaluate("document.querySelector('.graph .plot').data[1].marker.size")
        assert sizes[2] > sizes[0]
        assert complaints == []


def test_nodes_stand_below_those_they_read_and_apart_from_their_neighbours():
    columns, rows = placed(5, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3), (3, 4)])
    assert rows == [0, 1, 1, 2, 3]
    assert abs(columns[1] - columns[2]) == 1
    assert columns[3] == columns[4] == np.mean(columns[1:3])


def test_missing_plotly_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"plotly is not installed; run `pip install 'onnxqat\[report\]'`"):
        render("title", [])
