"""Places of a network's nodes on a page: rows by depth, and in a row the order that crosses few edges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

#: Times that rows are put in order by the places of their neighbours, down and up.
SWEEPS = 4


def placed(count: int, edges: Sequence[tuple[int, int]]) -> tuple[list[float], list[int]]:
    """Columns and rows of the nodes: a layered drawing (Sugiyama et al. 1981), ordered by barycentres.

    Args:
        count: number of nodes; each comes behind those that it reads.
        edges: pairs (read, reader).
    """
    above, below = defaultdict(list), defaultdict(list)
    for start, end in edges:
        above[end].append(start)
        below[start].append(end)
    rows = [0] * count
    for node in range(count):
        rows[node] = max((rows[other] + 1 for other in above[node]), default=0)
    members: dict[int, list[int]] = defaultdict(list)
    for node in range(count):
        members[rows[node]].append(node)
    columns = [0.0] * count
    for sweep in range(SWEEPS):
        for row in sorted(members, reverse=bool(sweep % 2)):
            _order(members[row], below if sweep % 2 else above, columns)
    return columns, rows


def _order(row: list[int], neighbours: dict[int, list[int]], columns: list[float]) -> None:
    """Sorts a row by the mean column of each node's neighbours, and places it around 0."""
    means = {n: sum(columns[o] for o in neighbours[n]) / len(neighbours[n]) for n in row if neighbours[n]}
    row.sort(key=lambda node: means.get(node, columns[node]))
    middle = sum(means.values()) / len(means) if means else 0.0
    for place, node in enumerate(row):
        columns[node] = round(middle + place - (len(row) - 1) / 2, 3)
