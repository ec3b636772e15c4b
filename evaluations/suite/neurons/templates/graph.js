// A neuron's graph (Neuron to Graph): the activating token at the right, its context to the left.

const CELL = {wide: 118, tall: 34, box: 24};

function neuronGraph({nodes, edges}) {
  const columns = [];
  for (const node of nodes) (columns[node.depth] ??= []).push(node);
  const near = new Map(nodes.map((node) => [node.id, []]));
  for (const {source, target} of edges) near.get(source)?.push(target);
  // a node is placed near its targets, which have their places already
  const place = new Map();
  columns.forEach((column, depth) => {
    const middle = (node) => {
      const heights = near.get(node.id).map((id) => place.get(id) ?? 0);
      return heights.length ? heights.reduce((a, b) => a + b, 0) / heights.length : 0;
    };
    if (depth) column.sort((a, b) => middle(a) - middle(b));
    column.forEach((node, i) => place.set(node.id, i - (column.length - 1) / 2));
  });
  const tallest = Math.max(1, ...columns.filter(Boolean).map((column) => column.length));
  const x = (node) => (columns.length - 1 - node.depth + 0.5) * CELL.wide;
  const y = (node) => (place.get(node.id) + tallest / 2) * CELL.tall;
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const half = CELL.wide * 0.42;
  const most = Math.max(1, ...edges.map((edge) => edge.count ?? 1));
  const size = [columns.length * CELL.wide, tallest * CELL.tall];
  return svgElement("svg", {viewBox: `0 0 ${size.join(" ")}`, width: size[0], role: "img"},
    ...edges.filter(({source, target}) => byId.has(source) && byId.has(target)).map((edge) => {
      const [from, to] = [byId.get(edge.source), byId.get(edge.target)];
      const [left, right] = [x(from) + half, x(to) - half];
      const middle = (left + right) / 2;
      return svgElement("path", {
        d: `M${left},${y(from)} C${middle},${y(from)} ${middle},${y(to)} ${right},${y(to)}`,
        "stroke-width": 0.8 + 2.2 * Math.sqrt((edge.count ?? 1) / most),
      });
    }),
    ...nodes.map((node) => svgElement("g", {class: node.kind},
      svgElement("rect", {x: x(node) - half, y: y(node) - CELL.box / 2, width: 2 * half, height: CELL.box, rx: 5}),
      svgElement("text", {x: x(node), y: y(node) + 4, "text-anchor": "middle"}, short(node)),
      svgElement("title", {}, `${visible(node.token ?? "any token")}` +
        (typeof node.activation === "number" ? `, activation ${number(node.activation)}` : "")))));
}

function short({token, kind}) {
  if (kind === "ignore" || token === null) return "any";
  const text = visible(token);
  return text.length > 13 ? `${text.slice(0, 12)}…` : text;
}

function graphLegend() {
  const kinds = [["activating", "token the neuron activates on"], ["context", "context token that matters"],
    ["ignore", "any token"]];
  return element("p", {class: "small soft graph-legend"},
    ...kinds.map(([kind, text]) => element("span", {class: kind}, text)),
    "An edge leads from a token to the next one that matters; a wider edge: in more excerpts.");
}
