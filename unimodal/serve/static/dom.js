// Elements without markup: text only ever becomes a text node, so nothing that a model or a user writes is read as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class`, `data`, `on`, `aria-*` and plain ones) and children, strings among them. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with an icon and a word. */
export function action(name, label, handler, title) {
  return el("button", { type: "button", class: "action", title, on: { click: handler } }, icon(name), el("span", {}, label));
}
