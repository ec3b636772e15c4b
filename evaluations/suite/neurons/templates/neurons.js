// The browser of neurons: one model, or two side by side, sorted and filtered alike.

const KINDS = {top: "most active", sample: "sample of stories that activate it", random: "random stories"};
const HALVES = {explain: "explained from", held_out: "held out"};
const COLORS = ["first", "second"];

function neuronBrowser(root) {
  const models = pageData("neurons").map(readModel);
  const control = Object.fromEntries([...root.querySelectorAll("[name]")].map((node) => [node.name, node]));
  const state = {sort: "score", down: true, layer: "", text: "", simulated: true};
  const panes = models.slice(0, 2).map(makePane);
  let active = panes[0];

  /** A model's neurons as rows, from columns. */
  function readModel(model, place) {
    const {columns, peaks, vocabulary} = model;
    const keys = Object.keys(columns);
    const counts = {};
    const rows = columns.layer.map((layer, i) => {
      const row = Object.fromEntries(keys.map((key) => [key, columns[key][i]]));
      row.within = counts[layer] = (counts[layer] ?? -1) + 1;
      row.name = `${layer}.${row.index}`;
      row.order = layer * 1e6 + row.index;
      row.words = [row.explanation || "", row.reason || "", ...peaks[i].map((id) => vocabulary[id])]
        .join("\n").toLowerCase();
      return row;
    });
    return {place, name: model.name, notes: model.notes, vocabulary, rows, pieces: {}};
  }

  function makePane(model, place) {
    const pane = {model, place, chosen: null, missing: ""};
    pane.list = neuronList(model.name, (row) => choose(pane, row), sortBy);
    pane.head = element("header");
    pane.detail = element("article", {class: "detail", "aria-live": "polite"});
    pane.node = element("section", {class: `model ${COLORS[place]}`, focusin: () => { active = pane; }},
      pane.head, pane.list.node, pane.detail);
    return pane;
  }

  function choose(pane, row) {
    active = pane;
    pane.chosen = row;
    draw();
    pane.list.focus();
  }

  /** The neurons shown, in order; those without the value come last either way. */
  function shownRows(model) {
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

  function draw(isKept = true) {
    root.classList.toggle("simulating", state.simulated);
    control.text.value = state.text;
    control.layer.value = state.layer;
    control.sort.value = state.sort;
    control.simulated.checked = state.simulated;
    control.down.textContent = state.down ? "↓" : "↑";
    const shown = panes.map((pane) => {
      const rows = shownRows(pane.model);
      if (!rows.includes(pane.chosen)) pane.chosen = rows[0] ?? null;
      pane.list.show(rows, pane.chosen, state.sort);
      drawHead(pane, rows);
      drawDetail(pane);
      return {name: pane.model.name, color: COLORS[pane.place], rows};
    });
    root.querySelector(".histogram").replaceChildren(histogram(shown));
    if (isKept) keepAddress();
  }

  function drawHead(pane, rows) {
    const {model} = pane;
    const choice = models.length > 2 && element("select", {
      "aria-label": "model",
      change: (event) => { pane.model = models[event.target.value]; pane.chosen = null; draw(); },
    }, ...models.map((other) => element("option", {value: other.place, selected: other === model ? "" : null}, other.name)));
    const count = rows.length === model.rows.length
      ? `${rows.length} neurons` : `${rows.length} of ${model.rows.length} neurons`;
    pane.head.replaceChildren(
      element("h2", {}, choice || model.name),
      ...model.notes.map((note) => element("p", {class: "small soft"}, note)),
      ...(pane.missing ? [element("p", {class: "warning small"}, `There is no neuron ${pane.missing} of this model here.`)] : []),
      element("p", {class: "small count"}, count));
  }

  /** Values and explanation of the chosen neuron at once; excerpts once they are unpacked. */
  async function drawDetail(pane) {
    const {model, chosen: row} = pane;
    if (!row) return pane.detail.replaceChildren();
    if (pane.shown !== row) pane.detail.scrollTop = 0;
    pane.shown = row;
    const piece = model.pieces[row.layer];
    pane.detail.replaceChildren(...summary(row), ...(piece ? excerptsOf(model, row, piece) : []));
    if (piece) return;
    model.pieces[row.layer] = await unpacked(`excerpts-${model.place}-${row.layer}`);
    if (pane.model === model && pane.chosen === row) drawDetail(pane);
  }

  function summary(row) {
    const values = [["simulation", number(row.score, 3)], ["detection", number(row.detection)],
      ["fuzzing", number(row.fuzzing)], ["control: shuffled explanation", number(row.control)],
      ["density", share(row.density)], ["maximum", number(row.maximum)]];
    return [
      element("h3", {}, element("a", {href: location.hash, class: "permalink", title: "the address of this neuron"}, `Neuron ${row.name}`)),
      row.explanation ? element("p", {class: "explanation"}, row.explanation) : null,
      row.reason ? element("p", {class: "warning small"}, `Not scored: ${row.reason}`) : null,
      element("dl", {class: "figures"}, ...values.filter(([, value]) => value !== "–").map(([title, value]) =>
        element("div", {}, element("dt", {}, title), element("dd", {}, value)))),
    ].filter(Boolean);
  }

  /** All excerpts by kind, those of random stories folded; then the graph. */
  function excerptsOf(model, row, piece) {
    const {excerpts, graph} = piece[row.within];
    const groups = new Map();
    for (const excerpt of excerpts) {
      const [half, kind] = excerpt;
      const title = `${HALVES[half] ?? half}: ${KINDS[kind] ?? kind}`;
      if (!groups.has(title)) groups.set(title, {isFolded: kind === "random", members: []});
      groups.get(title).members.push(excerpt);
    }
    return [
      ...[...groups].flatMap(([title, {isFolded, members}]) => {
        const lines = members.map((excerpt) => excerptLine(model, excerpt));
        const head = `${title} (${members.length})`;
        return isFolded ? [element("details", {}, element("summary", {}, head), ...lines)]
          : [element("h4", {}, head), ...lines];
      }),
      ...(graph ? [element("figure", {class: "graph"}, element("h4", {}, "Neuron to Graph"),
        neuronGraph(graph), graphLegend())] : []),
    ];
  }

  function excerptLine(model, [, , story, start, tokens, levels, simulated]) {
    const level = (digit) => parseInt(digit, 36);
    const highest = Math.max(...[...levels].map(level));
    return element("p", {class: "excerpt"},
      element("span", {class: "peak", title: `story ${story}, from token ${start}; highest level of 10`}, `${highest}/10`),
      start > 0 ? element("span", {class: "soft"}, "… ") : null,
      ...tokens.map((id, i) => tokenSpan(model.vocabulary[id], level(levels[i]), simulated ? level(simulated[i]) : null)));
  }

  function tokenSpan(token, activation, simulated) {
    const prediction = simulated === null ? "" : `, predicted ${simulated}`;
    const classes = `token${activation ? " on" : ""}${simulated ? " predicted" : ""}`;
    const style = activation || simulated ? `--a:${activation / 10};--s:${(simulated ?? 0) / 10}` : null;
    return element("span", {class: classes, style, title: `${visible(token)}  active ${activation}${prediction}`}, ...written(token));
  }

  /** Spaces stay spaces; the end of a line is shown as a mark. */
  function written(token) {
    const parts = token.split(/([\n\r\t]+)/).filter(Boolean);
    return parts.map((part) => /[\n\r\t]/.test(part) ? element("span", {class: "mark"}, visible(part)) : part);
  }

  function sortBy(key) {
    if (state.sort === key) state.down = !state.down;
    else Object.assign(state, {sort: key, down: true});
    draw();
  }

  /** The address holds the neurons shown, filters and order, so that it can be sent to somebody. */
  function keepAddress() {
    const parts = new URLSearchParams();
    if (address().get("theme")) parts.set("theme", address().get("theme"));
    if (state.sort !== "score") parts.set("sort", state.sort);
    if (!state.down) parts.set("down", "0");
    if (state.layer !== "") parts.set("layer", state.layer);
    if (state.text) parts.set("text", state.text);
    if (!state.simulated) parts.set("simulated", "0");
    panes.forEach((pane, i) => {
      const which = i ? i + 1 : "";
      if (pane.model !== models[i]) parts.set(`model${which}`, pane.model.name);
      if (pane.chosen) parts.set(`neuron${which}`, pane.chosen.name);
      pane.missing = "";
    });
    history.replaceState(null, "", `#${parts}`);
    for (const link of root.querySelectorAll(".permalink")) link.href = location.hash;
  }

  function readAddress() {
    const parts = address();
    state.sort = parts.get("sort") ?? "score";
    state.down = parts.get("down") !== "0";
    state.layer = parts.get("layer") ?? "";
    state.text = parts.get("text") ?? "";
    state.simulated = parts.get("simulated") !== "0";
    panes.forEach((pane, i) => {
      const which = i ? i + 1 : "";
      const [model, neuron] = [parts.get(`model${which}`), parts.get(`neuron${which}`)];
      pane.model = models.find((other) => other.name === model) ?? (model === null ? models[i] : pane.model);
      pane.chosen = pane.model.rows.find((row) => row.name === neuron) ?? pane.chosen;
      pane.missing = neuron && pane.chosen?.name !== neuron ? neuron : "";
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
  window.addEventListener("hashchange", () => { if (location.hash.includes("=")) readAddress(); });

  const frame = root.querySelector(".models");
  frame.classList.add(panes.length > 1 ? "pair" : "single");
  frame.append(...panes.map((pane) => pane.node));
  readAddress();
}

for (const root of document.querySelectorAll(".neurons")) neuronBrowser(root);
