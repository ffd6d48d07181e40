"""The style and the script of the page of a search, as they stand in it."""

from __future__ import annotations

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 1.5rem auto;
  padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; } p { margin: .4rem 0; }
.bar { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; margin: .8rem 0; }
.bar label { white-space: nowrap; } .bar select { max-width: 20rem; font: inherit; }
#switches { display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
#plot { height: 30rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; border-bottom: 1px solid #ddd; }
th { font-weight: 500; } button { font: inherit; padding: .2rem .8rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; white-space: pre; }
#copied, #hint { color: #555; }
"""

SCRIPT = """
"use strict";
(() => {
const byId = id => document.getElementById(id);
const read = id => JSON.parse(byId(id).textContent);
const data = read("data"), figure = read("figure"), plot = byId("plot");
const traces = figure.data, front = traces.length - 2, chosen = traces.length - 1;
const across = byId("across"), up = byId("up");

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  parent.appendChild(made);
  return made;
}
for (const [select, first] of [[across, data.across], [up, data.up]]) {
  data.axes.forEach((axis, number) => { element("option", axis.name, select).value = number; });
  select.value = first;
  select.addEventListener("change", draw);
}
const switches = traces.map((trace, number) => {
  const label = element("label", null, byId("switches"));
  const box = element("input", null, label);
  box.type = "checkbox";
  box.checked = true;
  box.dataset.trace = number;
  const words = number < front ? data.dots[trace.customdata[0]].way : trace.name;
  label.append(" " + words);
  box.addEventListener("change", draw);
  return box;
});

function frontOf(x, y) {
  const ways = [data.axes[x].direction, data.axes[y].direction];
  if (!ways[0] || !ways[1] || x === y) return [];
  const points = data.dots.filter(dot => dot.way === data.frontOf)
    .map(dot => [dot.values[x], dot.values[y]])
    .filter(pair => pair[0] !== null && pair[1] !== null)
    .sort((a, b) => ways[0] * (b[0] - a[0]) || ways[1] * (b[1] - a[1]));
  const best = [];
  for (const pair of points) {
    const last = best[best.length - 1];
    if (!last || ways[1] * (pair[1] - last[1]) > 0) best.push(pair);
  }
  return best;
}

function draw() {
  const x = Number(across.value), y = Number(up.value);
  const best = frontOf(x, y);
  const ringed = data.dots.filter(dot => dot.chosen).map(dot => [dot.values[x], dot.values[y]]);
  traces.forEach((trace, number) => {
    const pairs = number === front ? best : number === chosen ? ringed
      : trace.customdata.map(one => [data.dots[one].values[x], data.dots[one].values[y]]);
    trace.x = pairs.map(pair => pair[0]);
    trace.y = pairs.map(pair => pair[1]);
    // Models as they are, for example, have no place over a setting: nothing to switch.
    const drawn = pairs.some(pair => pair[0] !== null && pair[1] !== null);
    trace.visible = switches[number].checked;
    switches[number].parentNode.hidden = !drawn;
    trace.showlegend = drawn;
  });
  const title = number => ({text: data.axes[number].drawn});
  figure.layout.xaxis = {...figure.layout.xaxis, title: title(x), autorange: true};
  figure.layout.yaxis = {...figure.layout.yaxis, title: title(y), autorange: true};
  return Plotly.react(plot, traces, figure.layout,
    {responsive: true, displaylogo: false, modeBarButtons: [
      ["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]});
}

function show(dot) {
  byId("hint").hidden = true;
  byId("details").hidden = false;
  byId("name").textContent = dot.way + (dot.chosen ? " (chosen)" : "");
  byId("table").replaceChildren();
  for (const [name, value] of dot.settings.concat(dot.scores)) {
    const row = element("tr", null, byId("table"));
    element("th", name, row).scope = "row";
    element("td", value, row);
  }
  byId("recipe").textContent = dot.recipe;
  byId("copied").textContent = "";
}

async function copy() {
  const recipe = byId("recipe");
  let done = true;
  try {
    await navigator.clipboard.writeText(recipe.textContent);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(recipe);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    done = document.execCommand("copy");
  }
  byId("copied").textContent = done ? "copied" : "selected: press Ctrl-C";
}

byId("copy").addEventListener("click", copy);
draw().then(() => {
  plot.on("plotly_click", event => show(data.dots[event.points[0].customdata]));
  document.documentElement.dataset.ready = "yes";
});
})();
"""
