"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const GOOD = [[0, "#d73027"], [0.5, "#fee08b"], [1, "#1a9850"]];
const COSTLY = [[0, "#fff3c4"], [1, "#b10026"]];
const config = { responsive: true, displaylogo: false, scrollZoom: true };

async function loadLibrary() {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

function axis(given) {
  return { gridcolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true, ...given };
}

function layout(given) {
  const { xaxis, yaxis, yaxis2, ...rest } = given;
  const axes = { xaxis: axis(xaxis), yaxis: axis(yaxis) };
  if (yaxis2) axes.yaxis2 = { overlaying: "y", side: "right", showgrid: false, automargin: true, ...yaxis2 };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--front") },
    margin: { l: 48, r: 16, t: 8, b: 40 }, legend: { orientation: "h" }, bargap: 0.05, ...axes, ...rest,
  };
}

function draw(box) {
  const given = JSON.parse(box.querySelector("script").textContent);
  if (box.classList.contains("graph")) return drawGraph(box, given);
  const lines = (given.layout.shapes || []).map((shape) => ({ ...shape, line: { color: colour("--soft"), ...shape.line } }));
  Plotly.react(box.querySelector(".plot"), given.traces, layout({ ...given.layout, shapes: lines }), config);
}

const shortened = (name) => (name.length > 28 ? `…${name.slice(-27)}` : name);
const escaped = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // plotly reads some HTML

function drawGraph(box, graph) {
  const wanted = box.querySelector("input").value.toLowerCase();
  const by = box.querySelector("select").value;
  const found = graph.names.map((name) => wanted !== "" && name.toLowerCase().includes(wanted));
  const lines = { x: [], y: [] };
  for (const [start, end] of graph.edges) {
    const long = graph.y[end] - graph.y[start] > 1; // it bends around the nodes between
    const bend = long ? [[(graph.x[start] + graph.x[end]) / 2 - 0.4], [-(graph.y[start] + graph.y[end]) / 2]] : [[], []];
    lines.x.push(graph.x[start], ...bend[0], graph.x[end], null);
    lines.y.push(-graph.y[start], ...bend[1], -graph.y[end], null);
  }
  const figures = graph.colours[by] || [];
  const edges = { ...lines, mode: "lines", line: { color: colour("--soft"), width: 1, shape: "spline" }, hoverinfo: "skip" };
  const nodes = {
    x: graph.x, y: graph.y.map((row) => -row), mode: "markers+text", hovertext: graph.labels, hoverinfo: "text",
    text: graph.names.map((name, node) => (found[node] ? `<b>${escaped(name)}</b>` : escaped(shortened(name)))), textposition: "middle right",
    marker: {
      symbol: "square", size: found.map((one) => (one ? 22 : 13)), color: figures.map((value) => value ?? NaN),
      colorscale: by.includes("dB") ? GOOD : COSTLY, showscale: true, colorbar: { title: { text: by }, thickness: 12 },
      line: { color: found.map((one) => (one ? colour("--mark") : colour("--soft"))), width: found.map((one) => (one ? 4 : 1)) },
    },
  };
  const hidden = { visible: false };
  const first = found.indexOf(true);
  const centre = first < 0 ? 0 : -graph.y[first];
  const rows = Math.max(...graph.y, 1);
  const span = Math.min(rows + 2, 16);
  const from = first < 0 ? -span + 1 : centre - span / 2;
  const sides = { ...hidden, range: [Math.min(...graph.x) - 1, Math.max(...graph.x, 2) + 1] }; // room for names beside nodes
  const given = { showlegend: false, dragmode: "pan", xaxis: sides, yaxis: { ...hidden, range: [from, from + span] } };
  Plotly.react(box.querySelector(".plot"), [edges, nodes], layout(given), config);
}

function sort(table, column, head) {
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const empty = (row) => row.cells[column].textContent === "";
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const rows = [...table.querySelectorAll("tbody > tr:not(.details)")].map((row) => [row, row.nextElementSibling]);
  rows.sort(([a], [b]) => empty(a) - empty(b) || (descending ? -1 : 1) * compare(key(a), key(b)));
  for (const [row, next] of rows) {
    table.tBodies[0].append(row);
    if (next && next.classList.contains("details")) table.tBodies[0].append(next);
  }
}

function open(row) {
  const details = row.nextElementSibling;
  details.hidden = !details.hidden;
  row.setAttribute("aria-expanded", String(!details.hidden));
  if (!details.hidden) details.querySelectorAll("figure.chart").forEach(draw);
}

function listen() {
  for (const box of document.querySelectorAll(".table")) {
    const table = box.querySelector("table");
    table.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => sort(table, column, head)));
    box.querySelector("input")?.addEventListener("input", (event) => {
      for (const row of table.querySelectorAll("tbody > tr:not(.details)")) {
        row.hidden = !row.textContent.toLowerCase().includes(event.target.value.toLowerCase());
        const next = row.nextElementSibling;
        if (row.hidden && next?.classList.contains("details")) { next.hidden = true; row.setAttribute("aria-expanded", "false"); }
      }
    });
  }
  for (const row of document.querySelectorAll("tr.opens")) {
    row.addEventListener("click", () => open(row));
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") open(row); });
  }
  for (const box of document.querySelectorAll(".graph")) {
    for (const control of box.querySelectorAll("input, select")) control.addEventListener("input", () => draw(box));
  }
}

function drawAll() {
  for (const box of document.querySelectorAll("figure.chart, .graph")) if (!box.closest("[hidden]")) draw(box);
}

listen();
loadLibrary().then(() => {
  drawAll();
  dark.addEventListener("change", drawAll);
  document.documentElement.dataset.ready = "true";
});
