"use strict";
// Uses the page of a report as a reader would, and leaves what it saw in an element of its own.

const seen = {};
const column = (name) => [...document.querySelectorAll("#runs th button")].findIndex((b) => b.textContent === name);
const cells = (name) =>
  [...document.querySelectorAll("#runs tr.row")].map((row) => row.cells[column(name)].textContent);
const sort = (name) => document.querySelectorAll("#runs th button")[column(name)].click();
const set = (id, value) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value;
  else control.value = value;
  control.dispatchEvent(new Event("input"));
};
const plot = (id) => document.getElementById(`chart-${id}`);
const lines = (id) => plot(id).querySelectorAll(".scatterlayer .trace").length;
const table = () => ["model.d_model", "train.seed", "loss"].map((name) => cells(name));
async function probe() {
  seen.unsorted = cells("run");
  sort("loss");
  seen.ascending = cells("loss");
  seen.sorted = document.querySelectorAll("#runs th")[column("loss")].getAttribute("aria-sort");
  sort("loss");
  seen.descending = cells("loss");
  sort("run");
  seen.byName = cells("run");
  seen.charts = Object.fromEntries(["curves", "ablation", "parallel"].map((id) => [id, lines(id)]));
  seen.heat = plot("map").querySelectorAll(".heatmaplayer image").length;
  seen.images = [...document.querySelectorAll("#pictures img")].map((image) => image.naturalWidth > 0);
  const shown = (x) => {
    set("curve-x", x);
    return plot("curves")
      .data.filter((t) => t.x.length)[0]
      .x.at(-1);
  };
  seen.ends = Object.fromEntries(["step", "tokens", "flops", "time"].map((x) => [x, shown(x)]));
  set("curve-logx", true);
  seen.axes = [plot("curves").layout.xaxis.type, plot("curves").layout.yaxis.type];
  set("curve-logy", false);
  seen.linear = plot("curves").layout.yaxis.type;
  set("curve-metric", "train/loss");
  const roughness = () => {
    const y = plot("curves").data[0].y;
    return y.slice(2).reduce((s, v, i) => s + (v - 2 * y[i + 1] + y[i]) ** 2, 0);
  };
  set("curve-smooth", 0);
  const rough = roughness();
  set("filter", "d_model=256"); // fewer than 17 runs show their raw curves, too, when smoothed
  set("filter", "");
  set("curve-smooth", 10);
  seen.smoother = roughness() < rough;
  set("map-y", "");
  seen.line = lines("map");
  set("filter", "d_model>=256 train.seed=1");
  seen.filtered = table();
  seen.curves = lines("curves");
  set("filter", "diverged");
  seen.diverged = cells("run");
  document.querySelector("#runs tr.row").click();
  seen.opened = document.querySelector("#runs tr.more").textContent;
  set("filter", "");
  seen.theme = document.documentElement.dataset.theme;
  document.getElementById("theme").click();
  seen.dark = [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor];
  seen.fetched = performance
    .getEntriesByType("resource")
    .map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
}
probe()
  .catch((error) => {
    seen.error = String(error.stack);
  })
  .finally(() => {
    document.body.insertAdjacentHTML("beforeend", '<pre id="probe"></pre>');
    document.getElementById("probe").textContent = JSON.stringify(seen);
    console.log("the probe has ended");
  });
