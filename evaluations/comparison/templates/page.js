// What every page shares: elements, data, numbers, tokens, light and dark.

/** An element; `attributes` are set as given, a function as a listener; null children are left out. */
function element(name, attributes = {}, ...children) {
  return build(document.createElement(name), attributes, children);
}

/** The same for a picture's elements. */
function drawn(name, attributes = {}, ...children) {
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

/** The data an element of the page holds, or null. */
function held(identity) {
  const found = document.getElementById(identity);
  return found && JSON.parse(found.textContent);
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

/** A token as it is told apart: its spaces and line ends made visible. */
function visible(token) {
  return token.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\r/g, "␍").replace(/\t/g, "⇥");
}

/** What the address says after #, as `key=value` pairs; empty where it names a place in the page. */
function address() {
  const text = location.hash.slice(1);
  return new URLSearchParams(text.includes("=") ? text : "");
}

for (const button of document.querySelectorAll(".theme")) {
  const root = document.documentElement;
  const dark = () => root.style.colorScheme
    ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (address().get("theme")) root.style.colorScheme = address().get("theme");
  button.addEventListener("click", () => { root.style.colorScheme = dark() ? "light" : "dark"; });
}
