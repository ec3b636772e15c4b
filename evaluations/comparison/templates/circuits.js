// Circuits: what is pointed at lights up and is told below; a click holds it, another lets go.

for (const picture of document.querySelectorAll(".circuit")) {
  const told = picture.parentElement.querySelector(".told");
  const edges = [...picture.querySelectorAll(".edge")];
  const nodes = new Map([...picture.querySelectorAll(".node")].map((node) => [node.dataset.name, node]));
  let kept = null;

  function point(thing) {
    picture.classList.toggle("pointed", thing !== null);
    for (const one of picture.querySelectorAll(".lit")) one.classList.remove("lit");
    told.textContent = thing ? thing.dataset.told : "";
    if (!thing) return;
    const name = thing.dataset.name;
    const lit = edges.filter((edge) => edge === thing || edge.dataset.from === name || edge.dataset.to === name);
    nodes.get(name)?.classList.add("lit");
    for (const edge of lit) {
      edge.classList.add("lit");
      for (const end of [edge.dataset.from, edge.dataset.to]) nodes.get(end)?.classList.add("lit");
    }
    if (name && lit.length) told.textContent += `; strongest: ${lit.at(-1).dataset.told}`;
  }

  const thing = (event) => event.target.closest(".edge, .node.used");
  picture.addEventListener("pointerover", (event) => { if (!kept) point(thing(event)); });
  picture.addEventListener("pointerleave", () => { if (!kept) point(null); });
  picture.addEventListener("focusin", (event) => { if (!kept) point(thing(event)); });
  picture.addEventListener("focusout", () => { if (!kept) point(null); });
  picture.addEventListener("click", (event) => {
    const found = thing(event);
    kept = found === kept ? null : found;
    point(found);
  });
}
