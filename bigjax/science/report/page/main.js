"use strict";
// Puts the page together. What the reader chose outlives a reload of the page.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const storageKey = `bigjax-report:${location.pathname}`;

function loadState() {
  try {
    return JSON.parse(sessionStorage.getItem(storageKey)) ?? {};
  } catch {
    return {};
  }
}
function saveState() {
  try {
    sessionStorage.setItem(storageKey, JSON.stringify(state));
  } catch {
    /* a page without storage forgets */
  }
}
const state = { controls: {}, tables: {}, ...loadState() };
const tables = {};
let keep = () => true;

function fillQuestion() {
  const [first, ...rest] = (data.question || "").trim().split(/\n\s*\n/),
    title = first.replace(/\s+/g, " ");
  byId("question").querySelector("h1").textContent = title || `Runs of ${data.pattern}`;
  document.title = title ? `${title} · bigjax report` : document.title;
  const from = data.question
    ? `Question ${data.asked === "--question" ? "given by" : "from"} ${data.asked}; runs of ${data.pattern}`
    : "No question was given (--question).";
  byId("question").querySelector(".source").textContent = from;
  const details = byId("question").querySelector("details");
  details.hidden = !rest.length;
  details.querySelector("pre").textContent = data.question.trim();
  const finished = data.runs.filter((run) => run.state === "finished").length;
  const counted = data.runs.filter((run) => run.loss !== null);
  const best = counted.reduce((a, b) => (a && a.loss <= b.loss ? a : b), null);
  const cards = [
    [`${finished} of ${data.runs.length}`, "runs finished"],
    [counted.length, "runs in the statistics"],
  ];
  if (data.settings.length) cards.push([data.settings.length, "settings, seeds apart"]);
  if (best && !data.incomparable) cards.push([best.loss.toFixed(4), `lowest ${data.measure}: ${best.name}`]);
  if (data.floor)
    cards.push([
      data.floor.sd.toPrecision(2),
      `noise floor: standard deviation over seeds, ${data.floor.dof} degrees of freedom`,
    ]);
  byId("cards").append(
    ...cards.map(([value, text]) =>
      make("div", { class: "cardlet" }, make("b", {}, String(value)), make("span", {}, text)),
    ),
  );
  byId("notes").append(...notes().map(([text, kind]) => make("li", { class: kind }, text)));
}

function notes() {
  const found = [],
    out = data.runs.filter((run) => run.leftOut);
  for (const [verdict, words] of [
    ["better", "better than"],
    ["worse", "worse than"],
    ["within noise", "within noise of"],
  ]) {
    const labels = data.settings.filter((s) => s.verdict === verdict).map((s) => s.label);
    if (!labels.length) continue;
    const more = labels.length > 3 ? ` and ${labels.length - 3} more` : "";
    const listed = verdict === "within noise" && more ? "." : `: ${labels.slice(0, 3).join("; ")}${more}.`;
    found.push([`${labels.length} ${words} the baseline${listed}`, ""]);
  }
  if (data.incomparable) found.push([`No statistics: ${data.incomparable}.`, "warn"]);
  if (out.length) {
    const said = out
      .slice(0, 4)
      .map((run) => `${run.name} (${run.leftOut})`)
      .join("; ");
    found.push([`Left out of all statistics: ${said}${out.length > 4 ? ` and ${out.length - 4} more` : ""}.`, "warn"]);
  }
  if (data.settings.length > 1 && !data.floor) {
    found.push([
      "No setting was run with two seeds, so there is no noise floor: differences cannot be judged.",
      "warn",
    ]);
  }
  return found;
}

function provenance(name) {
  return (row) =>
    data.tables[name].runs[row].slice(0, 40).map((i) => {
      const run = data.runs[i],
        out = run.leftOut ? `\nleft out of statistics: ${run.leftOut}` : "";
      return make("pre", {}, `${run.folder}  (fingerprint ${run.fingerprint})\n$ ${run.command}${out}`);
    });
}

const faded = (name) => (row) => name === "runs" && data.runs[row].leftOut !== null;

function fillTables() {
  for (const place of document.querySelectorAll("[data-table]")) {
    const name = place.dataset.table,
      table = data.tables[name];
    if (!table) continue;
    state.tables[name] ??= {};
    tables[name] = new SortableTable(place, table, provenance(name), state.tables[name], faded(name));
  }
}

function fillFits() {
  const place = byId("pictures");
  place.append(
    ...data.pictures.map((p) => make("figure", {}, make("img", { src: p.source, alt: `Scaling laws: ${p.name}` }))),
  );
  const text = byId("fit-text");
  if (!data.fits) text.append(make("p", { class: "hint" }, `No law was fitted: ${data.fitsSkipped}.`));
  for (const block of data.fits.trim().split("\n\n").filter(Boolean)) {
    if (!block.startsWith("|")) {
      text.append(make("p", {}, block));
      continue;
    }
    const [head, , ...rows] = block.split("\n").map((line) =>
      line
        .slice(1, -1)
        .split("|")
        .map((cell) => cell.trim()),
    );
    const cells = (tag, row) =>
      make(
        "tr",
        {},
        ...row.map((cell, i) => make(tag, { class: i ? "numeric" : "text", style: "padding: 4px 12px" }, cell)),
      );
    text.append(
      make(
        "table",
        {},
        make("thead", {}, cells("th", head)),
        make("tbody", {}, ...rows.map((row) => cells("td", row))),
      ),
    );
  }
}

function fillOptions(id, names, chosen) {
  byId(id).replaceChildren(...names.map(([value, text]) => make("option", { value }, text)));
  if (names.some(([value]) => value === chosen)) byId(id).value = chosen;
}

function curves() {
  const options = {
    x: byId("curve-x").value,
    metric: byId("curve-metric").value,
    colour: byId("curve-colour").value,
    smooth: Number(byId("curve-smooth").value),
    logx: byId("curve-logx").checked,
    logy: byId("curve-logy").checked,
  };
  byId("curve-smooth-shown").textContent = `± ${options.smooth} %`;
  drawCurves(data, options, keep);
}

const map = () =>
  data.axes.length && data.settings.length > 1 && drawMap(data, byId("map-x").value, byId("map-y").value);
const parallel = () => data.axes.length && data.settings.length > 1 && drawParallel(data, keep);

function filterRuns() {
  keep = parseFilter(byId("filter").value, data.tables.runs);
  tables.runs.visible = keep;
  tables.runs.draw();
  const shown = data.runs.filter((_, i) => keep(i)).length;
  byId("filtered").textContent = `${shown} of ${data.runs.length} runs`;
}

function drawAll() {
  curves();
  if (data.settings.length > 1) drawAblation(data);
  map();
  parallel();
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function bind() {
  for (const control of document.querySelectorAll(".controls select, .controls input")) {
    const saved = state.controls[control.id],
      box = control.type === "checkbox";
    const gone = control.options && ![...control.options].some((option) => option.value === saved);
    if (saved !== undefined && !gone) control[box ? "checked" : "value"] = saved;
    control.addEventListener("input", () => {
      state.controls[control.id] = box ? control.checked : control.value;
      saveState();
      if (control.id === "filter") {
        filterRuns();
        parallel();
      }
      if (control.id.startsWith("map")) map();
      else curves();
    });
  }
  byId("theme").addEventListener("click", () => {
    state.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    setTheme(state.theme);
    saveState();
    drawAll();
  });
  // Paper is white, and as wide as it is.
  let before;
  window.addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    setTheme("light");
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    setTheme(before);
    drawAll();
  });
}

function findRunOnClick(id) {
  byId(id).on?.("plotly_click", ({ points }) => {
    const i = data.runs.findIndex((run) => run.name === points[0].data.meta);
    const row = byId("runs").querySelector(`[data-row="${i}"]`);
    if (!row) return;
    if (row.nextElementSibling?.className !== "more") row.click();
    row.scrollIntoView({ block: "center" });
  });
}

function hide() {
  byId("differences").hidden = !data.tables.config_diff;
  byId("ablation").hidden = byId("hyperparameters").hidden = data.settings.length < 2;
  const floor = data.floor;
  byId("ablation").querySelector(".hint").textContent = floor
    ? "Mean over seeds with its 95 % t interval; differences by Welch's test, or with the noise floor where " +
      "a setting has fewer than three runs (seeds of one setting have a standard deviation of " +
      `${floor.sd.toPrecision(2)}, pooled over ${floor.settings} settings; two single runs must differ by ` +
      `${floor.detectable.toPrecision(2)}). Verdicts use p-values adjusted for the number of rows (Holm).`
    : "No setting has two seeds: there is no interval, and no verdict.";
  const more = data.settings.length - MAX_ROWS;
  if (more > 0)
    byId("ablation").querySelector(".hint").append(` The chart leaves out the ${more} with the highest loss.`);
  const visible = [...document.querySelectorAll("main section")].filter((s) => !s.hidden && s.querySelector("h2"));
  byId("nav").append(...visible.map((s) => make("a", { href: `#${s.id}` }, s.querySelector("h2").textContent)));
}

setTheme(state.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
fillQuestion();
hide();
fillTables();
fillFits();
const numbered = data.axes.map((path) => [path, path]);
const perSetting = data.settings.length > 1 && data.settings.length <= 10;
fillOptions(
  "curve-colour",
  [["setting", "setting"], ["run", "run"], ...numbered],
  perSetting ? "setting" : (data.axes[0] ?? "run"),
);
fillOptions("map-x", numbered, data.axes[0]);
fillOptions("map-y", [["", "none"], ...numbered], data.axes[1] ?? "");
byId("made").textContent = data.made;
byId("command").textContent = data.command;
bind();
filterRuns();
drawAll();
findRunOnClick("chart-curves");
if (data.settings.length > 1) findRunOnClick("chart-parallel");
document.documentElement.dataset.ready = "true";
