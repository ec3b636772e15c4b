// Scores of one or two models on one axis, as in the paper's Figure 2.

const BIN = 0.05;

/** The share of each model's scored neurons in each bin, and their means as dashed lines. */
function histogram(models) {
  const scored = models.map(({rows}) => rows.map((row) => row.score).filter((s) => s !== null));
  const low = Math.min(0, ...scored.map((scores) => bin(scores.reduce((a, b) => Math.min(a, b), 0))));
  const count = Math.round(1 / BIN) - low;
  const shares = scored.map((scores) => {
    const bins = new Array(count).fill(0);
    for (const score of scores) bins[Math.min(count - 1, bin(score) - low)] += 1 / scores.length;
    return bins;
  });
  const [wide, high, foot, top] = [760, 130, 22, 18];
  const highest = Math.max(0.01, ...shares.flat());
  const x = (score) => ((score / BIN - low) / count) * wide;
  const y = (value) => top + (1 - value / highest) * high;
  const shown = svgElement("svg", {viewBox: `0 0 ${wide} ${top + high + foot}`, role: "img"});
  shares.forEach((bins, model) => bins.forEach((value, place) => {
    if (!value) return;
    const from = (low + place) * BIN;
    const bar = svgElement("rect", {
      class: "bar", x: x(from) + 1, width: wide / count - 2, y: y(value),
      height: y(0) - y(value), fill: "currentColor",
    }, svgElement("title", {}, `${models[model].name}: ${share(value)} of ${scored[model].length} ` +
      `score ${number(from)} to ${number(from + BIN)}`));
    shown.append(svgElement("g", {class: models[model].color}, bar));
  }));
  shown.append(svgElement("line", {class: "axis", x1: 0, x2: wide, y1: y(0), y2: y(0)}));
  for (let tick = Math.ceil(low * BIN * 5) / 5; tick <= 1.001; tick += 0.2) {
    const anchor = tick > 0.99 ? "end" : tick * 1 <= low * BIN + 0.01 ? "start" : "middle";
    shown.append(svgElement("text", {x: x(tick), y: y(0) + 15, "text-anchor": anchor}, number(tick, 1)));
  }
  scored.forEach((scores, model) => {
    if (scores.length) shown.append(mean(scores, models[model], x, y(0), top, model));
  });
  return shown;
}

function bin(score) {
  return Math.floor(score / BIN + 1e-9);
}

function mean(scores, model, x, foot, top, place) {
  const value = scores.reduce((a, b) => a + b, 0) / scores.length;
  // two means are seldom far apart: their labels stand above each other
  const right = value < 0.6;
  return svgElement("g", {class: model.color},
    svgElement("line", {class: "mean", x1: x(value), x2: x(value), y1: 2 + 13 * place, y2: foot, stroke: "currentColor"}),
    svgElement("text", {
      x: x(value) + (right ? 6 : -6), y: 10 + 13 * place, "text-anchor": right ? "start" : "end",
      style: "fill: currentColor",
    }, `${model.name}: mean ${number(value, 3)}, n ${scores.length}`));
}
