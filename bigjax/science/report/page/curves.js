"use strict";
// Loss curves.

const LEFT_OUT = "left out";

// The mean of each value and up to `reach` neighbours on both sides, as many on one as on the other.
function smooth(values, reach) {
  if (!reach) return values;
  const sums = [0],
    counts = [0];
  values.forEach((v, i) => {
    sums.push(sums[i] + (v ?? 0));
    counts.push(counts[i] + (v === null ? 0 : 1));
  });
  return values.map((_, i) => {
    const side = Math.min(i, reach),
      first = i - side,
      last = Math.min(i + side, values.length - 1) + 1;
    const n = counts[last] - counts[first];
    return n ? (sums[last] - sums[first]) / n : null;
  });
}

function drawCurves(data, options, shown) {
  const keys = {
    setting: (run) => (run.setting === null ? LEFT_OUT : data.settings[run.setting].label),
    run: (run) => run.name,
  };
  const keyOf = keys[options.colour] ?? ((run) => run.values[options.colour]);
  const chosen = data.runs.filter((run, i) => shown(i));
  const palette = colours(data.runs.map(keyOf));
  palette.set(JSON.stringify(LEFT_OUT), css("--soft"));
  const scale = { step: () => 1, tokens: (run) => run.tokensPerStep, flops: (run) => run.flopsPerStep };
  const traces = [],
    listed = new Set(),
    visible = [],
    without = [];
  for (const run of chosen) {
    const factor = options.x === "time" ? 1 : scale[options.x](run);
    if (!factor) {
      without.push(run.name);
      continue;
    }
    const key = keyOf(run),
      id = JSON.stringify(key),
      colour = palette.get(id),
      many = palette.size > 24;
    const add = (name, values, style) => {
      const curve = run.curves[name];
      const first = !listed.has(id) && style.listed;
      if (first) listed.add(id);
      const x = options.x === "time" ? curve.time : curve.step.map((step) => step * factor);
      traces.push({
        type: "scatter",
        x,
        y: values,
        name: escaped(shortened(fieldText(key))),
        legendgroup: id,
        legendrank: 1 + [...palette.keys()].indexOf(id),
        showlegend: Boolean(first) && !many,
        opacity: style.opacity ?? 1,
        mode: style.mode,
        line: { color: colour, width: style.width, dash: style.dash },
        marker: { color: colour, size: 5 },
        hovertemplate: `<b>${escaped(run.name)}</b> ${name} %{y:.4f}<br>at %{x:.4s} ${options.x}<extra></extra>`,
        meta: run.name,
        hoverinfo: style.listed ? undefined : "skip",
      });
    };
    const train = run.curves["train/loss"],
      evaluated = run.curves["eval/loss"];
    if (options.metric !== "eval/loss" && train.value.length) {
      const reach = Math.round((train.value.length * options.smooth) / 100),
        line = smooth(train.value, reach);
      if (reach && chosen.length <= 16) add("train/loss", train.value, { mode: "lines", width: 0.7, opacity: 0.25 });
      add("train/loss", line, { mode: line.length > 1 ? "lines" : "markers", width: 1.8, listed: true });
      visible.push(...line.slice(Math.floor(line.length / 50)));
    }
    if (options.metric !== "train/loss" && evaluated.value.length) {
      const beside = options.metric === "both";
      add("eval/loss", evaluated.value, {
        mode: evaluated.value.length > 40 ? "lines" : "lines+markers",
        width: 1.2,
        dash: beside ? "dot" : "solid",
        listed: true,
      });
      visible.push(...evaluated.value);
    }
  }
  const finite = visible.filter((v) => v !== null && (!options.logy || v > 0));
  let range;
  if (finite.length) {
    // Divergences and first steps would squeeze the part one looks at into the lower edge.
    const ordered = finite.slice().sort((a, b) => a - b),
      low = ordered[0];
    const high = Math.max(ordered[Math.floor((ordered.length - 1) * 0.995)], low * 1.0001);
    const ends = options.logy ? [Math.log10(low), Math.log10(high)] : [low, high],
      margin = 0.04 * (ends[1] - ends[0]);
    range = [ends[0] - margin, ends[1] + margin];
  }
  const names = { step: "steps", tokens: "tokens", flops: "training FLOPs", time: "seconds of training" };
  const xaxis = {
    title: { text: names[options.x] },
    type: options.logx ? "log" : "linear",
    exponentformat: options.x === "flops" ? "power" : "SI",
  };
  const yaxis = {
    title: { text: `loss (${data.unit})` },
    type: options.logy ? "log" : "linear",
    range,
    tickformat: ".4~g",
    nticks: 9,
  };
  if (options.logy) Object.assign(yaxis, logTicks(range));
  draw("chart-curves", traces, {
    xaxis,
    yaxis,
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", title: { text: options.colour + "  " } },
  });
  const missing = without.length ? ` Without known FLOPs: ${without.join(", ")}.` : "";
  const dotted = options.metric === "both" ? "Solid: training, smoothed. Dotted with markers: held out. " : "";
  document.getElementById("curve-hint").textContent = `${dotted}A click on a curve finds its run below.${missing}`;
}

// Round numbers on a logarithmic axis of little more than a decade, where powers of ten are too few.
function logTicks(range) {
  if (!range || range[1] - range[0] > 1.5) return {};
  const [low, high] = range.map((r) => 10 ** r),
    power = 10 ** Math.floor(Math.log10((high - low) / 5));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => (high - low) / (power * m) <= 8);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) ticks.push(Number(t.toPrecision(8)));
  return { tickvals: ticks, ticktext: ticks.map((t) => String(Number(t.toPrecision(5)))) };
}

/** The text with its middle left out if it is long: a legend of long names would take the room of the curves. */
function shortened(text, most = 40) {
  const letters = [...text];
  return letters.length <= most ? text : `${letters.slice(0, most / 2).join("")}…${letters.slice(1 - most / 2).join("")}`;
}
