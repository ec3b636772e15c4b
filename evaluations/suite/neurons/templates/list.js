// A list of thousands of neurons: only the rows in view are elements of the page.

const SPARE = 6; // rows above and below what is in view

const COLUMNS = [["name", "neuron"], ["score", "score"], ["density", "density"], ["maximum", "max"],
  ["explanation", "explanation"]];

/** The list; `choose(row)` is called when a neuron is picked, `sort(key)` from its head. */
function neuronList(label, choose, sort) {
  const spacer = element("div", {class: "spacer"});
  const view = element("div", {
    class: "rows", role: "listbox", tabindex: 0, "aria-label": `neurons of ${label}`,
    scroll: () => draw(), keydown: (event) => keys(event),
  }, spacer);
  const head = element("div", {class: "head"}, ...COLUMNS.map(([key, text]) =>
    element("button", {"data-key": key, click: () => sort(key)}, text)));
  const node = element("div", {class: "list"}, head, view);
  let rows = [], chosen = null, height = 30;

  function draw() {
    height = parseFloat(getComputedStyle(view).getPropertyValue("--row")) || height;
    spacer.style.height = `${Math.max(1, rows.length) * height}px`;
    const first = Math.max(0, Math.floor(view.scrollTop / height) - SPARE);
    const last = Math.min(rows.length, first + Math.ceil(view.clientHeight / height) + 2 * SPARE);
    spacer.replaceChildren(...rows.slice(first, last).map((row, i) => line(row, first + i)));
    if (!rows.length) spacer.append(element("div", {class: "none soft"}, "no neuron matches"));
  }

  function line(row, place) {
    return element("div", {
      class: "row", role: "option", "aria-selected": row === chosen, style: `top:${place * height}px`,
      click: () => choose(row), "data-name": row.name,
    },
    element("span", {}, row.name), gauge(row),
    element("span", {}, share(row.density)), element("span", {}, number(row.maximum)),
    element("span", {class: "what", title: row.explanation || row.reason}, row.explanation || row.reason || ""));
  }

  function gauge(row) {
    if (row.score === null) return element("span", {class: "soft"}, "–");
    const width = `width:${Math.max(0, 100 * row.score)}%`;
    return element("span", {class: "gauge"}, number(row.score), element("i", {style: width}));
  }

  function keys(event) {
    const page = Math.max(1, Math.floor(view.clientHeight / height) - 1);
    const steps = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity};
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(steps[event.key]);
  }

  function move(step) {
    if (!rows.length) return;
    const from = Math.max(0, rows.indexOf(chosen));
    choose(rows[Math.min(rows.length - 1, Math.max(0, from + step))]);
  }

  /** Show these rows, the chosen one in view. */
  function show(shown, picked, sorting) {
    rows = shown;
    chosen = picked;
    for (const button of head.children) button.setAttribute("aria-pressed", button.dataset.key === sorting);
    draw();  // sets the height that is scrolled
    const top = rows.indexOf(chosen) * height;
    if (top >= 0 && (top < view.scrollTop || top + height > view.scrollTop + view.clientHeight)) {
      view.scrollTop = top - view.clientHeight / 3;
      draw();
    }
  }

  new ResizeObserver(draw).observe(view);

  return {node, show, move, focus: () => view.focus({preventScroll: true})};
}
