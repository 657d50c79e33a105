"use strict";
// The charts of settings: against the baseline, and each run as a line through its fields.

const MAX_ROWS = 31; // settings in the chart of the ablation: the baseline and the best

// A label in at most two lines.
function wrap(label) {
  const lines = [""];
  for (const part of label.split(", ")) {
    const last = lines.at(-1);
    if (last && last.length + part.length > 44) lines.push(part);
    else lines[lines.length - 1] = last ? `${last}, ${part}` : part;
  }
  const kept = lines.length > 2 ? [lines[0], `${lines[1]}, …`] : lines;
  return kept.map(escaped).join(",<br>");
}

function drawAblation(data) {
  const rows = data.settings.slice(0, MAX_ROWS),
    base = rows[0],
    colour = { better: "--good", worse: "--bad", baseline: "--accent" };
  const place = (i) => rows.length - 1 - i;
  const wrapped = rows.map((row) => wrap(row.label));
  const lines = Math.max(...wrapped.map((text) => text.split("<br>").length));
  const colourOf = (row) => css(colour[row.verdict] ?? "--soft");
  const seeds = {
    type: "scatter",
    mode: "markers",
    x: [],
    y: [],
    text: [],
    marker: { size: 5, color: css("--soft"), opacity: 0.55 },
    name: "each seed",
    hovertemplate: "%{text}<br>%{x:.4f}<extra></extra>",
  };
  rows.forEach((row, i) =>
    row.losses.forEach((loss, j) => {
      seeds.x.push(loss);
      seeds.y.push(place(i) - 0.22);
      seeds.text.push(escaped(data.runs[row.runs[j]].name));
    }),
  );
  const known = (end) => rows.map((row) => (row[end] === null ? 0 : Math.abs(row[end] - row.mean)));
  const means = {
    type: "scatter",
    mode: "markers",
    x: rows.map((row) => row.mean),
    y: rows.map((_, i) => place(i)),
    name: "mean, 95 % interval",
    marker: { size: 10, color: rows.map(colourOf), line: { width: 1, color: css("--card") } },
    error_x: {
      type: "data",
      symmetric: false,
      array: known("high"),
      arrayminus: known("low"),
      color: css("--soft"),
      thickness: 1.6,
      width: 5,
    },
    text: rows.map((row) => `${row.verdict}<br>${escaped(row.label).replace(/, /g, ",<br>")}`),
    hovertemplate: "%{x:.4f}, %{text}<extra></extra>",
  };
  const across = { xref: "x", yref: "paper", y0: 0, y1: 1, layer: "below" };
  const shapes = [
    { ...across, type: "line", x0: base.mean, x1: base.mean, line: { color: css("--accent"), width: 1, dash: "dot" } },
  ];
  if (base.low !== null)
    shapes.push({
      ...across,
      type: "rect",
      x0: base.low,
      x1: base.high,
      fillcolor: css("--accent"),
      opacity: 0.09,
      line: { width: 0 },
    });
  // One wide interval must not squeeze the others: the axis covers means and seeds, and intervals up to twice as far.
  const points = [...seeds.x, ...means.x],
    low = Math.min(...points),
    high = Math.max(...points),
    room = (high - low || 0.1) * 1.0;
  const ends = (pick, i) => pick(...rows.map((row) => row[i] ?? row.mean), ...points);
  const range = [Math.max(ends(Math.min, "low"), low - room), Math.min(ends(Math.max, "high"), high + room)],
    margin = 0.04 * (range[1] - range[0]);
  draw("chart-ablation", [means, seeds], {
    height: 96 + rows.length * (lines > 1 ? 10 + 16 * lines : 34),
    shapes,
    margin: { l: 60, r: 24, t: 10, b: 72 },
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
    xaxis: {
      title: { text: `${data.measure} (${data.unit})`, standoff: 6 },
      range: [range[0] - margin, range[1] + margin],
    },
    yaxis: {
      tickvals: rows.map((_, i) => place(i)),
      ticktext: wrapped,
      range: [-0.6, rows.length - 0.4],
      showgrid: false,
      zeroline: false,
    },
  });
}

function drawParallel(data, shown) {
  const chosen = data.runs.filter((run, i) => shown(i) && run.loss !== null);
  const paths = data.axes.slice(0, 9),
    hint = document.getElementById("parallel-hint"),
    losses = chosen.map((run) => run.loss);
  const columns = [
    ...paths.map((path) => ({ name: path, values: chosen.map((run) => run.values[path]) })),
    { name: "loss", values: losses },
  ];
  const annotations = [],
    shapes = [];
  const heights = columns.map(({ name, values }, c) => {
    const numbers = values.length && values.every((v) => typeof v === "number"),
      all = sorted(values);
    const onLog = numbers && logarithmic(values),
      place = onLog ? Math.log : (v) => v;
    const [low, high] = numbers ? [place(Math.min(...values)), place(Math.max(...values))] : [0, all.length - 1];
    const height = (v) => {
      const at = numbers ? place(v) : all.findIndex((other) => JSON.stringify(other) === JSON.stringify(v));
      return high > low ? (at - low) / (high - low) : 0.5;
    };
    const steps =
      numbers && all.length > 7
        ? [0, 0.25, 0.5, 0.75, 1].map((s) => (onLog ? Math.exp(low + s * (high - low)) : low + s * (high - low)))
        : all;
    for (const tick of distinct(steps)) {
      const text = name === "loss" ? tick.toFixed(3) : fieldText(numbers ? Number(tick.toPrecision(4)) : tick);
      annotations.push({
        x: c,
        y: height(tick),
        text: text.length > 24 ? text.slice(0, 23) + "…" : text,
        showarrow: false,
        xanchor: "left",
        xshift: 5,
        font: { size: 11, color: css("--soft") },
        bgcolor: css("--card"),
        opacity: 0.85,
      });
    }
    annotations.push({
      x: c,
      y: 1,
      yshift: 22,
      text: `<b>${name}</b>${onLog ? " (log)" : ""}`,
      showarrow: false,
      font: { size: 12 },
    });
    shapes.push({ type: "line", x0: c, x1: c, y0: 0, y1: 1, line: { color: css("--soft"), width: 1 } });
    return values.map(height);
  });
  const width = chosen.length > 40 ? 1.2 : 2;
  const rank = losses.slice().sort((a, b) => a - b);
  const traces = chosen.map((run, i) => ({
    type: "scatter",
    mode: "lines+markers",
    x: columns.map((_, c) => c),
    y: heights.map((column) => column[i]),
    meta: run.name,
    showlegend: false,
    line: { color: scaleColour(1 - rank.indexOf(run.loss) / Math.max(rank.length - 1, 1)), width },
    marker: { size: 5 },
    opacity: 0.85,
    hovertemplate: `<b>${escaped(run.name)}</b> loss ${run.loss.toFixed(4)}<extra></extra>`,
  }));
  draw("chart-parallel", traces, {
    height: 380,
    annotations,
    shapes,
    margin: { l: 70, r: 70, t: 48, b: 14 },
    xaxis: { visible: false, range: [-0.15, columns.length - 0.7], fixedrange: true },
    yaxis: { visible: false, range: [-0.05, 1.05], fixedrange: true },
  });
  hint.textContent =
    "One line a finished run; the brighter, the lower its loss. The filter of the runs chooses which are drawn.";
}
