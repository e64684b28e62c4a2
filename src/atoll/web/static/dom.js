// Elements, made from data: text is always text, since names come from strangers.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

export function el(tag, attributes = {}, children = []) {
  return made(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, children = []) {
  return made(document.createElementNS(SVG, tag), attributes, children);
}

function made(element, attributes, children) {
  set(element, attributes);
  element.append(...children);
  return element;
}

/** Set what is not so already. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
}

/** Let it say this, where it does not already. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setText(id, text) {
  put(find(id), text);
}

/** Make these the children, and touch only those that are not where they belong. */
export function fill(parent, children) {
  children.forEach((child, index) => {
    const there = parent.childNodes[index];
    if (there === child) return;
    parent.insertBefore(typeof child === "string" ? document.createTextNode(child) : child, there ?? null);
  });
  while (parent.childNodes.length > children.length) parent.lastChild.remove();
}
