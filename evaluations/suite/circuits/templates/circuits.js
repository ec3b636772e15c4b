// Circuits: what is pointed at lights up and is described below; a click keeps it.

for (const picture of document.querySelectorAll(".circuit")) {
  const description = picture.parentElement.querySelector(".pointed-at");
  const edges = [...picture.querySelectorAll(".edge")];
  const nodes = new Map([...picture.querySelectorAll(".node")].map((node) => [node.dataset.name, node]));
  let kept = null;

  function point(target) {
    picture.classList.toggle("pointed", target !== null);
    for (const node of picture.querySelectorAll(".lit")) node.classList.remove("lit");
    description.textContent = target ? target.dataset.summary : "";
    if (!target) return;
    const name = target.dataset.name;
    const lit = edges.filter((edge) => edge === target || edge.dataset.from === name || edge.dataset.to === name);
    nodes.get(name)?.classList.add("lit");
    for (const edge of lit) {
      edge.classList.add("lit");
      for (const end of [edge.dataset.from, edge.dataset.to]) nodes.get(end)?.classList.add("lit");
    }
    if (name && lit.length) description.textContent += `; strongest: ${lit.at(-1).dataset.summary}`;
  }

  const targetOf = (event) => event.target.closest(".edge, .node.used");
  picture.addEventListener("pointerover", (event) => { if (!kept) point(targetOf(event)); });
  picture.addEventListener("pointerleave", () => { if (!kept) point(null); });
  picture.addEventListener("focusin", (event) => { if (!kept) point(targetOf(event)); });
  picture.addEventListener("focusout", () => { if (!kept) point(null); });
  picture.addEventListener("click", (event) => {
    const target = targetOf(event);
    kept = target === kept ? null : target;
    point(target);
  });
}
