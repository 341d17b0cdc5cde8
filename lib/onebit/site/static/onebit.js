// Sorting, filtering, folding and pausing.  Without this script everything is shown, in its first order.
"use strict";

const NOTHING = "\u2013"; // stands in tables where there is no number

// Tables --------------------------------------------------------------------------------------------------------------

function valueOf(cell) {
  const text = (cell.dataset.value ?? cell.textContent).trim();
  if (text === NOTHING || text === "" || text === "nan") return null;
  const number = Number(text.replace(/[,\s%\u00d7]/g, "").replace("\u2212", "-"));
  return Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, "en", { numeric: true });
}

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row.cells[column]), row]);
  rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b)));
  body.append(...rows.map(([, row]) => row)); // those without a value stay last in both directions
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((heading, column, all) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "ob-sort";
    button.append(...heading.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "row"); // the index of a data frame
    heading.append(button);
    button.addEventListener("click", () => {
      const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      all.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      sortBy(table, column, order === "ascending" ? 1 : -1);
    });
  });
}

function hasHeadings(table) {
  const rows = table.tHead ? table.tHead.rows : [];
  return rows.length === 1 && table.tBodies.length === 1 && rows[0].textContent.trim() !== "";
}

// The ledger ----------------------------------------------------------------------------------------------------------

function keeps(row, form) {
  const words = form.words.value.toLowerCase().split(/\s+/);
  const text = `${row.textContent} ${row.cells[0].title}`.toLowerCase();
  return words.every((word) => text.includes(word)) &&
    ["state", "source", "notebook"].every((field) => !form[field].value ||
      row.dataset[field].split(", ").includes(form[field].value));
}

function makeFilter(form) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  const apply = () => {
    rows.forEach((row) => { row.hidden = !keeps(row, form); });
    form.querySelector("output").value = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  };
  new URLSearchParams(location.search).forEach((value, field) => {
    if (form.elements[field]) form.elements[field].value = value;
  });
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

// Code and moving pictures --------------------------------------------------------------------------------------------

function makeUnfold(button) {
  const cells = document.querySelectorAll("div.cell details.hide.above-input");
  button.hidden = cells.length === 0;
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-pressed") !== "true";
    cells.forEach((cell) => { cell.open = open; });
    button.setAttribute("aria-pressed", open);
    button.textContent = open ? "Fold all code" : "Show all code";
  });
}

function makePausable(image) {
  const still = document.createElement("canvas");
  const button = document.createElement("button");
  const show = (moving) => {
    if (!moving) {
      [still.width, still.height] = [image.naturalWidth, image.naturalHeight];
      still.getContext("2d").drawImage(image, 0, 0);
    }
    [image.hidden, still.hidden] = [!moving, moving];
    button.textContent = moving ? "Pause" : "Play";
  };
  still.className = image.className;
  button.type = "button";
  button.className = "ob-pause";
  button.addEventListener("click", () => show(image.hidden));
  image.after(still, button);
  const start = () => show(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  if (image.complete) start(); else image.addEventListener("load", start, { once: true });
}

// Figures wider than a phone scroll by themselves; the side on which there is more fades.
function watchEdges(frame) {
  const show = () => {
    const hidden = frame.scrollWidth - frame.clientWidth;
    frame.classList.toggle("ob-wide", hidden > 1);
    frame.classList.toggle("ob-more-left", hidden > 1 && frame.scrollLeft > 1);
    frame.classList.toggle("ob-more-right", hidden > 1 && frame.scrollLeft < hidden - 1);
  };
  frame.addEventListener("scroll", show, { passive: true });
  new ResizeObserver(show).observe(frame);
}

// Inline equations wider than the page scroll by themselves.
function boxLongEquations() {
  document.querySelectorAll("span.math").forEach((equation) => {
    const room = equation.parentElement.getBoundingClientRect().width;
    if (equation.getBoundingClientRect().width > room) equation.classList.add("ob-long");
  });
}

document.querySelectorAll("table.ob-sortable, article table.docutils").forEach((table) => {
  if (hasHeadings(table)) makeSortable(table);
});
document.querySelectorAll(".ob-filter").forEach(makeFilter);
document.querySelectorAll(".ob-unfold").forEach(makeUnfold);
document.querySelectorAll("img.ob-moving").forEach(makePausable);
document.querySelectorAll(".ob-figure .ob-frame").forEach(watchEdges);
addEventListener("load", () => window.MathJax?.startup?.promise.then(boxLongEquations));
