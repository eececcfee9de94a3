// Draws the charts, and builds the table of the map when it is opened.
"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" } };

function drawTable(chart, view, details) {
  const rows = chart.spec.data.values;
  const at = chart.points.iterations.length > 1 ? view.signal("at") : 0;
  const columns = chart.points.columns;
  const value = (row, key) => (row[key] === undefined ? row[key + at] : row[key]) || "–";
  const cells = (tag, texts) => texts.map((text) => {
    const cell = document.createElement(tag);
    cell.textContent = text;
    return cell;
  });
  const line = (tag, texts) => {
    const row = document.createElement("tr");
    row.append(...cells(tag, texts));
    return row;
  };
  const table = document.createElement("table");
  table.append(line("th", ["image", "x", "y", ...columns]));
  for (const row of rows) {
    table.append(line("td", [row.image, row["x" + at], row["y" + at], ...columns.map((key) => value(row, key))]));
  }
  const caption = document.createElement("p");
  caption.textContent = "Iteration " + chart.points.iterations[at];
  details.querySelector(".scroll").replaceChildren(caption, table);
}

function labelSlider(chart, element) {
  // Vega shows the position of the slider; the reader needs the iteration.
  const input = element.querySelector("input[type=range]");
  if (!input) return;
  const label = document.createElement("output");
  const show = () => { label.textContent = chart.points.iterations[Number(input.value)]; };
  for (const node of [...input.parentElement.children]) {
    if (node !== input && !node.classList.contains("vega-bind-name")) node.remove();
  }
  input.after(label);
  input.addEventListener("input", show);
  show();
}

async function draw() {
  for (const chart of charts) {
    const element = document.getElementById(chart.id);
    const { view } = await vegaEmbed(element, chart.spec, options);
    if (chart.points) {
      labelSlider(chart, element);
      const details = element.closest("figure").querySelector("details");
      details.addEventListener("toggle", () => { if (details.open) drawTable(chart, view, details); });
      for (const input of element.querySelectorAll("input, select")) {
        input.addEventListener("input", () => setTimeout(() => { if (details.open) drawTable(chart, view, details); }));
      }
    }
  }
  document.documentElement.dataset.drawn = charts.length;
}

const opened = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.data:not([open]):not(.points):not(.group details)")) { details.open = true; opened.push(details); }
});
addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });
draw();
