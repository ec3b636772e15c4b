// Shared by all pages: elements, data, numbers, tokens, light and dark.

/** An element; a function among the attributes is a listener; null children are left out. */
function element(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** The same for SVG. */
function svgElement(name, attributes = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The JSON that an element of the page holds, or null. */
function pageData(id) {
  const node = document.getElementById(id);
  return node && JSON.parse(node.textContent);
}

/** The same of gzipped JSON, as a promise. */
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function number(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const small = value !== 0 && Math.abs(value) < 10 ** -digits;
  return small ? value.toPrecision(1) : value.toFixed(digits).replace("-", "−");
}

function share(value) {
  if (value === 0) return "0 %";
  if (value < 1e-4) return "<0.01 %";
  return `${(100 * value).toFixed(value < 0.1 ? 2 : 1)} %`;
}

/** A token with its spaces and line ends made visible. */
function visible(token) {
  return token.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\r/g, "␍").replace(/\t/g, "⇥");
}

/** The `key=value` pairs after # in the address; empty where it names a place in the page. */
function address() {
  const text = location.hash.slice(1);
  return new URLSearchParams(text.includes("=") ? text : "");
}

for (const button of document.querySelectorAll(".theme")) {
  const root = document.documentElement;
  const isDark = () => root.style.colorScheme
    ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (address().get("theme")) root.style.colorScheme = address().get("theme");
  button.addEventListener("click", () => { root.style.colorScheme = isDark() ? "light" : "dark"; });
}
