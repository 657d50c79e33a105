"use strict";
// Sortable tables. A cell is [sort key, text]; empty cells stay last whichever way a column is sorted.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const ROWS = 40; // shown of a long table until the reader asks for all

const BADGES = new Set(["verdict", "state"]);
const collator = new Intl.Collator("en", { numeric: true });

function compareCells([a], [b], direction) {
  const emptyA = a === null || a === "",
    emptyB = b === null || b === "";
  if (emptyA || emptyB) return emptyA - emptyB;
  const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b));
  return direction * order;
}

class SortableTable {
  // `provenance(row)` returns the nodes shown below a row that is opened; `saved` keeps the sorting; `faded(row)` says
  // which rows step back.
  constructor(place, table, provenance, saved, faded) {
    this.table = table;
    this.provenance = provenance;
    this.saved = saved;
    this.faded = faded;
    this.visible = () => true;
    this.shownColumns = table.columns.map((_, i) => i).filter((i) => !["code", "data"].includes(table.columns[i].kind));
    this.sort = saved.sort ?? null;
    this.body = make("tbody");
    this.heads = new Map();
    const head = make("tr");
    for (const i of this.shownColumns) {
      const column = table.columns[i];
      const button = make("button", { type: "button" }, column.name);
      const cell = make("th", { scope: "col", class: column.numeric ? "numeric" : "text" }, button);
      button.addEventListener("click", () => this.sortBy(i));
      this.heads.set(i, cell);
      head.append(cell);
    }
    place.replaceChildren(make("table", {}, make("thead", {}, head), this.body));
    this.draw();
  }

  sortBy(column) {
    const again = this.sort && this.sort[0] === column;
    this.sort = [column, again ? -this.sort[1] : 1];
    this.saved.sort = this.sort;
    saveState();
    this.draw();
  }

  draw() {
    for (const [i, cell] of this.heads) {
      if (this.sort && this.sort[0] === i) {
        cell.setAttribute("aria-sort", this.sort[1] > 0 ? "ascending" : "descending");
      } else cell.removeAttribute("aria-sort");
    }
    const order = this.table.rows.map((_, i) => i).filter((i) => this.visible(i));
    if (this.sort && this.heads.has(this.sort[0])) {
      const [column, direction] = this.sort;
      order.sort((a, b) => compareCells(this.table.rows[a][column], this.table.rows[b][column], direction));
    }
    const shown = this.whole ? order : order.slice(0, ROWS);
    this.body.replaceChildren(...shown.map((i) => this.row(i)));
    if (shown.length < order.length) this.body.append(this.rest(order.length));
  }

  rest(count) {
    const button = make("button", { type: "button" }, `show all ${count} rows`);
    button.addEventListener("click", () => {
      this.whole = true;
      this.draw();
    });
    return make("tr", { class: "rest" }, make("td", { colspan: this.shownColumns.length }, button));
  }

  row(i) {
    const cells = this.shownColumns.map((c) => {
      const { kind, numeric } = this.table.columns[c];
      const text = this.table.rows[i][c][1];
      const content = BADGES.has(kind) && text ? make("span", { class: `badge ${text}` }, text) : text;
      return make("td", { class: numeric ? "numeric" : "text" }, content);
    });
    const row = make(
      "tr",
      { class: this.faded(i) ? "row faded" : "row", "data-row": i, title: "show folder and command" },
      ...cells,
    );
    row.addEventListener("click", () => {
      if (String(window.getSelection())) return; // someone is copying text
      const next = row.nextElementSibling;
      if (next && next.className === "more") return next.remove();
      row.after(make("tr", { class: "more" }, make("td", { colspan: cells.length }, ...this.provenance(i))));
    });
    return row;
  }
}

// A filter of words and comparisons, all of which must hold: `wide loss<2.5 optim.lr>=1e-3 state=finished`.
function parseFilter(text, table) {
  const names = table.columns.map((column) => column.name);
  const find = (name) => {
    const exact = names.indexOf(name);
    return exact >= 0 ? exact : names.findIndex((other) => other.endsWith(`.${name}`));
  };
  const tests = text
    .trim()
    .split(/\s+/)
    .filter(Boolean)
    .map((term) => {
      const match = term.match(/^(.+?)(<=|>=|!=|<|>|=)(.*)$/);
      const column = match ? find(match[1]) : -1;
      if (column < 0) {
        const word = term.toLowerCase();
        return (row) => row.some(([, shown]) => shown.toLowerCase().includes(word));
      }
      const [, , operator, wanted] = match;
      return ([...row]) => {
        const [key, shown] = row[column];
        if (operator === "=" || operator === "!=") {
          const same = shown === wanted || (typeof key === "number" && wanted !== "" && key === Number(wanted));
          return (operator === "=") === same;
        }
        if (typeof key !== "number") return false;
        const limit = Number(wanted);
        return { "<": key < limit, ">": key > limit, "<=": key <= limit, ">=": key >= limit }[operator];
      };
    });
  return (i) => tests.every((test) => test(table.rows[i]));
}
