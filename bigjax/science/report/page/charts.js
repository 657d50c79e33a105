"use strict";
// What all charts share: colours, order, layout by theme. Each is drawn anew whenever a control or the theme changes.

const PALETTE = [
  "#3b7dd8",
  "#e07b39",
  "#3a9d62",
  "#c44e52",
  "#8668c4",
  "#8c6d4f",
  "#d46fae",
  "#7a8594",
  "#a8a22b",
  "#2ba3b4",
];
const SCALE = ["#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39"]; // viridis without its ends
const HEAT = SCALE.map((colour, i) => [i / (SCALE.length - 1), colour]);

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const logarithmic = (values) =>
  values.every((v) => typeof v === "number" && v > 0) && Math.max(...values) / Math.min(...values) >= 8;
const fieldText = (v) =>
  v === null || v === undefined ? "none" : typeof v === "number" ? String(Number(v.toPrecision(6))) : String(v);
const distinct = (values) => [...new Map(values.map((v) => [JSON.stringify(v), v])).values()];

// Plotly reads tags in its texts.
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

function sorted(values) {
  const numbers = values.every((v) => typeof v === "number");
  return distinct(values).sort((a, b) => (numbers ? a - b : collator.compare(fieldText(a), fieldText(b))));
}

function mix(a, b, share) {
  const part = (colour, i) => parseInt(colour.slice(1 + 2 * i, 3 + 2 * i), 16);
  return (
    "#" +
    [0, 1, 2]
      .map((i) =>
        Math.round(part(a, i) * (1 - share) + part(b, i) * share)
          .toString(16)
          .padStart(2, "0"),
      )
      .join("")
  );
}

function scaleColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SCALE.length - 1),
    i = Math.min(Math.floor(at), SCALE.length - 2);
  return mix(SCALE[i], SCALE[i + 1], at - i);
}

// The colour of each of some values: ordered ones along a scale, others from a palette.
function colours(values) {
  const all = sorted(values);
  const ordered = all.length > 2 && all.every((v) => typeof v === "number");
  return new Map(
    all.map((v, i) => [JSON.stringify(v), ordered ? scaleColour(i / (all.length - 1)) : PALETTE[i % PALETTE.length]]),
  );
}

function layout(changes) {
  const axis = {
    gridcolor: css("--grid"),
    linecolor: css("--line"),
    zerolinecolor: css("--grid"),
    automargin: true,
    ticks: "outside",
    ticklen: 4,
    tickcolor: css("--line"),
  };
  const { xaxis = {}, yaxis = {}, ...rest } = changes;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--text"), size: 13, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 60, r: 20, t: 16, b: 48 },
    hovermode: "closest",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--text") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") } },
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...rest,
  };
}

function draw(id, traces, changes) {
  const place = document.getElementById(id);
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };
  return Plotly.react(place, traces, layout(changes), config);
}
