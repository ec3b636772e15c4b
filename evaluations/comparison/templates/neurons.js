// The browser of neurons: one model, or two side by side; sorted and filtered alike.

const KINDS = {top: "most active", sample: "sample of stories in which it fires", random: "random"};
const HALVES = {explain: "explained from", held_out: "held out"};
const COLORS = ["first", "second"];

function neuronBrowser(root) {
  const models = held("neurons").map(readModel);
  const control = Object.fromEntries([...root.querySelectorAll("[name]")].map((one) => [one.name, one]));
  const state = {sort: "score", down: true, layer: "", text: "", simulated: true};
  const panes = models.slice(0, 2).map((model, place) => pane(model, place));
  let active = panes[0];

  /** A model's neurons as rows, made of the columns they are kept in. */
  function readModel(model, place) {
    const {columns, peaks, vocabulary} = model;
    const keys = Object.keys(columns);
    const seen = {};
    const rows = columns.layer.map((layer, i) => {
      const row = Object.fromEntries(keys.map((key) => [key, columns[key][i]]));
      row.within = seen[layer] = (seen[layer] ?? -1) + 1;
      row.name = `${layer}.${row.index}`;
      row.order = layer * 1e6 + row.index;
      row.words = [row.explanation || "", row.reason || "", ...peaks[i].map((id) => vocabulary[id])]
        .join("\n").toLowerCase();
      return row;
    });
    return {place, name: model.name, notes: model.notes, vocabulary, rows, pieces: {}};
  }

  function pane(model, place) {
    const made = {model, place, chosen: null};
    made.list = neuronList(model.name, (row) => { active = made; made.chosen = row; draw(); made.list.focus(); }, sortBy);
    made.head = element("header");
    made.detail = element("article", {class: "detail", "aria-live": "polite"});
    made.node = element("section", {class: `model ${COLORS[place]}`, focusin: () => { active = made; }},
      made.head, made.list.node, made.detail);
    return made;
  }

  /** Which neurons are shown, in order; those without the figure come last either way. */
  function found(model) {
    const text = state.text.toLowerCase();
    const key = state.sort === "name" ? "order" : state.sort;
    const sign = (key === "order" || key === "explanation") === state.down ? 1 : -1;
    const missing = (value) => value === null || value === undefined || value === "";
    return model.rows
      .filter((row) => (state.layer === "" || row.layer === Number(state.layer)) &&
        (row.words.includes(text) || row.name === text))
      .sort((a, b) => missing(a[key]) - missing(b[key]) ||
        (a[key] < b[key] ? -sign : a[key] > b[key] ? sign : a.order - b.order));
  }

  function draw(remembering = true) {
    root.classList.toggle("simulating", state.simulated);
    control.text.value = state.text;
    control.layer.value = state.layer;
    control.sort.value = state.sort;
    control.simulated.checked = state.simulated;
    control.down.textContent = state.down ? "↓" : "↑";
    const shown = panes.map((one) => {
      const rows = found(one.model);
      if (!rows.includes(one.chosen)) one.chosen = rows[0] ?? null;
      one.list.show(rows, one.chosen, state.sort);
      header(one, rows);
      one.detail.replaceChildren(...(one.chosen ? detail(one.model, one.chosen) : []));
      return {name: one.model.name, color: COLORS[one.place], rows};
    });
    root.querySelector(".histogram").replaceChildren(histogram(shown));
    if (remembering) remember();
  }

  function header(one, rows) {
    const {model} = one;
    const choice = models.length > 2 && element("select", {
      "aria-label": "model",
      change: (event) => { one.model = models[event.target.value]; one.chosen = null; draw(); },
    }, ...models.map((other) => element("option", {value: other.place, selected: other === model ? "" : null}, other.name)));
    const count = rows.length === model.rows.length
      ? `${rows.length} neurons` : `${rows.length} of ${model.rows.length} neurons`;
    one.head.replaceChildren(
      element("h2", {}, choice || model.name),
      ...model.notes.map((note) => element("p", {class: "small soft"}, note)),
      element("p", {class: "small count"}, count));
  }

  /** Everything known of one neuron. */
  function detail(model, row) {
    const figures = [["simulation", number(row.score, 3)], ["detection", number(row.detection)],
      ["fuzzing", number(row.fuzzing)], ["another's explanation", number(row.control)],
      ["density", share(row.density)], ["maximum", number(row.maximum)]];
    const piece = model.pieces[row.layer] ??= held(`excerpts-${model.place}-${row.layer}`);
    const {excerpts, graph} = piece[row.within];
    return [
      element("h3", {}, `Neuron ${row.name}`),
      row.explanation ? element("p", {class: "explanation"}, row.explanation) : null,
      row.reason ? element("p", {class: "warning small"}, `Not scored: ${row.reason}`) : null,
      element("dl", {class: "figures"}, ...figures.filter(([, value]) => value !== "–").map(([title, value]) =>
        element("div", {}, element("dt", {}, title), element("dd", {}, value)))),
      ...excerpts.flatMap((one, i) => [heading(one, excerpts[i - 1]), excerpt(model, row, one)]),
      graph ? element("figure", {class: "graph"}, element("h4", {}, "Neuron to Graph"), neuronGraph(graph)) : null,
    ].filter(Boolean);
  }

  function heading([half, kind], before) {
    if (before && before[0] === half && before[1] === kind) return null;
    return element("h4", {}, `${HALVES[half] ?? half}: ${KINDS[kind] ?? kind}`);
  }

  function excerpt(model, row, [, , story, start, tokens, levels, simulated]) {
    const level = (digit) => parseInt(digit, 36);
    const highest = Math.max(...[...levels].map(level));
    return element("p", {class: "excerpt"},
      element("span", {class: "peak", title: `story ${story}, from token ${start}; highest level of 10`}, `${highest}/10`),
      start > 0 ? element("span", {class: "soft"}, "… ") : null,
      ...tokens.map((id, i) => tokenSpan(model.vocabulary[id], level(levels[i]), simulated ? level(simulated[i]) : null)));
  }

  function tokenSpan(token, activation, simulated) {
    const told = simulated === null ? "" : `, predicted ${simulated}`;
    const classes = `token${activation ? " on" : ""}${simulated ? " said" : ""}`;
    const style = `--a:${activation / 10};--s:${(simulated ?? 0) / 10}`;
    return element("span", {class: classes, style, title: `${visible(token)}  active ${activation}${told}`}, ...written(token));
  }

  /** Spaces stay spaces; a line's end is a mark, for the excerpt runs on. */
  function written(token) {
    const parts = token.split(/([\n\r\t]+)/).filter(Boolean);
    return parts.map((part) => /[\n\r\t]/.test(part) ? element("span", {class: "mark"}, visible(part)) : part);
  }

  function sortBy(key) {
    if (state.sort === key) state.down = !state.down;
    else Object.assign(state, {sort: key, down: true});
    draw();
  }

  /** The address says what is looked at, so that it can be sent to somebody. */
  function remember() {
    const told = new URLSearchParams();
    if (address().get("theme")) told.set("theme", address().get("theme"));
    if (state.sort !== "score") told.set("sort", state.sort);
    if (!state.down) told.set("down", "0");
    if (state.layer !== "") told.set("layer", state.layer);
    if (state.text) told.set("text", state.text);
    if (!state.simulated) told.set("simulated", "0");
    panes.forEach((one, i) => {
      if (one.model !== models[i]) told.set(`model${i}`, one.model.place);
      if (one.chosen) told.set(`neuron${i}`, one.chosen.name);
    });
    history.replaceState(null, "", `#${told}`);
  }

  function recall() {
    const told = address();
    state.sort = told.get("sort") ?? "score";
    state.down = told.get("down") !== "0";
    state.layer = told.get("layer") ?? "";
    state.text = told.get("text") ?? "";
    state.simulated = told.get("simulated") !== "0";
    panes.forEach((one, i) => {
      one.model = models[told.get(`model${i}`)] ?? one.model;
      one.chosen = one.model.rows.find((row) => row.name === told.get(`neuron${i}`)) ?? one.chosen;
    });
    draw(false);
  }

  const layers = [...new Set(models.flatMap((model) => model.rows.map((row) => row.layer)))].sort((a, b) => a - b);
  control.layer.append(...layers.map((layer) => element("option", {value: layer}, layer)));
  control.text.addEventListener("input", () => { state.text = control.text.value; draw(); });
  control.layer.addEventListener("change", () => { state.layer = control.layer.value; draw(); });
  control.sort.addEventListener("change", () => sortBy(control.sort.value));
  control.down.addEventListener("click", () => { state.down = !state.down; draw(); });
  control.simulated.addEventListener("change", () => { state.simulated = control.simulated.checked; draw(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === control.text) control.text.blur();
    if (event.target.matches?.("input:not([type=checkbox]), select")) return;
    if (event.key === "/") { event.preventDefault(); control.text.focus(); }
    if (event.key === "s") { state.simulated = !state.simulated; draw(); }
    if (event.key === "j" || event.key === "k") active.list.move(event.key === "j" ? 1 : -1);
  });
  window.addEventListener("hashchange", () => { if (location.hash.includes("=")) recall(); });

  const frame = root.querySelector(".models");
  frame.classList.add(panes.length > 1 ? "pair" : "single");
  frame.append(...panes.map((one) => one.node));
  recall();
}

for (const root of document.querySelectorAll(".neurons")) neuronBrowser(root);
