"use strict";
// The loss over one field, or over two: a map of cells, or points where a field was drawn from a range.

const MANY = 12; // values of a field beyond which cells would be too small to read

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function drawMap(data, x, y) {
  const rest = data.axes.filter((path) => path !== x && path !== y);
  const over = rest.length ? `; the best over ${rest.join(", ")}` : "";
  // The best setting with the wanted values, whatever else it has.
  const best = (wanted) =>
    data.settings
      .filter((s) => Object.entries(wanted).every(([path, value]) => same(s.values[path], value)))
      .reduce((a, b) => (a && a.mean <= b.mean ? a : b), null);
  const valuesOf = (path) => sorted(data.settings.map((s) => s.values[path]));
  const alone = !y || y === x;
  const said = alone
    ? drawLine(data, x, valuesOf(x), best)
    : Math.max(valuesOf(x).length, valuesOf(y).length) > MANY
      ? drawPoints(data, x, y)
      : drawCells(x, valuesOf(x), y, valuesOf(y), best);
  document.getElementById("map-hint").textContent = said.replace("OVER", over);
}

function scaleOf(path, values) {
  const numbers = values.every((v) => typeof v === "number"),
    few = values.length <= MANY;
  const type = !numbers ? "category" : logarithmic(values) ? "log" : "linear";
  return {
    title: { text: path },
    type,
    ...(numbers && few ? { tickvals: values, ticktext: values.map(fieldText) } : {}),
    ...(type === "log" && !few ? { exponentformat: "power", dtick: 1 } : {}),
  };
}

const placed = (values) => (values.every((v) => typeof v === "number") ? values : values.map(fieldText));

function drawLine(data, x, xs, best) {
  const points = xs.map((value) => best({ [x]: value }));
  const error = (end) => points.map((p) => (p[end] === null ? 0 : Math.abs(p[end] - p.mean)));
  const line = {
    type: "scatter",
    mode: xs.every((v) => typeof v === "number") && xs.length <= MANY ? "lines+markers" : "markers",
    x: placed(xs),
    y: points.map((p) => p.mean),
    error_y: { type: "data", symmetric: false, array: error("high"), arrayminus: error("low"), color: css("--soft") },
    line: { color: css("--accent") },
    marker: { size: 8, color: css("--accent") },
    hovertemplate: "%{x}: %{y:.4f}<extra></extra>",
  };
  draw("chart-map", [line], {
    height: 380,
    xaxis: scaleOf(x, xs),
    yaxis: { title: { text: `loss (${data.unit})` } },
  });
  return "Mean over seeds with its 95 % intervalOVER.";
}

function drawPoints(data, x, y) {
  const [xs, ys] = [x, y].map((path) => data.settings.map((s) => s.values[path]));
  const points = {
    type: "scatter",
    mode: "markers",
    x: placed(xs),
    y: placed(ys),
    text: data.settings.map((s) => `loss ${s.mean.toFixed(4)}<br>${escaped(s.label).replace(/, /g, ",<br>")}`),
    hovertemplate: "%{text}<extra></extra>",
    marker: {
      size: 12,
      color: data.settings.map((s) => s.mean),
      colorscale: HEAT,
      line: { width: 1, color: css("--card") },
      colorbar: { title: { text: "loss", side: "right" }, thickness: 14, outlinewidth: 0 },
    },
  };
  draw("chart-map", [points], { height: 440, xaxis: scaleOf(x, sorted(xs)), yaxis: scaleOf(y, sorted(ys)) });
  return "One point a setting, coloured by its mean over seeds.";
}

function drawCells(x, xs, y, ys, best) {
  const z = ys.map((b) => xs.map((a) => best({ [x]: a, [y]: b })?.mean ?? null));
  const lowest = Math.min(...z.flat().filter((v) => v !== null));
  const frame = (i, j) => {
    const line = { color: css("--bad"), width: 3 };
    return { type: "rect", x0: i - 0.5, x1: i + 0.5, y0: j - 0.5, y1: j + 0.5, line };
  };
  const cells = {
    type: "heatmap",
    x: xs.map(fieldText),
    y: ys.map(fieldText),
    z,
    colorscale: HEAT,
    xgap: 2,
    ygap: 2,
    texttemplate: "%{z:.4f}",
    textfont: { size: 13 },
    hovertemplate: `${x} %{x}<br>${y} %{y}<br>loss %{z:.4f}<extra></extra>`,
    hoverongaps: false,
    colorbar: { title: { text: "loss", side: "right" }, thickness: 14, outlinewidth: 0 },
  };
  draw("chart-map", [cells], {
    height: Math.max(300, 110 + 56 * ys.length),
    shapes: z.flatMap((row, j) => row.flatMap((v, i) => (v === lowest ? [frame(i, j)] : []))),
    xaxis: { title: { text: x }, type: "category", showgrid: false },
    yaxis: { title: { text: y }, type: "category", showgrid: false },
  });
  return "Mean over seedsOVER. Framed: the lowest. Empty: not run.";
}
