// Small help with the document. What servers and models say goes in as text, never as markup.

const SVG = 'http://www.w3.org/2000/svg';

/**
 * The element with that id, which the page has.
 * @template {Element} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return /** @type {any} */ (found);
}

/**
 * Sets attributes; a function is a listener, null and false leave an attribute out.
 * @param {Element} node
 * @param {Record<string, string | number | boolean | null | undefined | ((event: any) => void)>} attributes
 */
function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
}

/**
 * A new element.
 * @param {string} tag
 * @param {Parameters<typeof set>[1]} [attributes]
 * @param {...(Node | string | null)} children
 * @returns {any}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  set(node, attributes);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/**
 * A new element of a drawing.
 * @param {string} tag
 * @param {Parameters<typeof set>[1]} [attributes]
 * @param {...Node} children
 * @returns {any}
 */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  set(node, attributes);
  node.append(...children);
  return node;
}

/**
 * Writes a text where it is another one: what has not changed is left alone, so that it can be selected and read out.
 * @param {Element} node
 * @param {string} text
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Sets an attribute where it is another one; null takes it away.
 * @param {Element} node
 * @param {string} name
 * @param {string | null} value
 */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** @type {WeakMap<Element, string>} */
const drawn = new WeakMap();

/**
 * Builds the children of `container` anew where what they show is something else than before.
 * @template T
 * @param {Element} container
 * @param {T} data what can be told as JSON
 * @param {(data: T) => (Node | string)[]} build
 */
export function redraw(container, data, build) {
  const now = JSON.stringify(data);
  if (drawn.get(container) === now) return;
  drawn.set(container, now);
  container.replaceChildren(...build(data));
}

/**
 * Puts a text where it can be pasted from. Browsers let only pages from a secure place use the clipboard; others have the old way.
 * @param {string} text
 * @param {Element} beside what keeps the focus
 * @returns {Promise<boolean>} whether that was allowed
 */
export async function copy(text, beside) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  const field = el('textarea', { class: 'aside', 'aria-hidden': 'true', tabindex: -1 });
  field.value = text;
  beside.after(field);
  field.select();
  const copied = document.execCommand('copy');
  field.remove();
  if (beside instanceof HTMLElement) beside.focus();
  return copied;
}

/** @type {WeakMap<Element, Map<string, {node: Element, update: (item: any) => void}>>} */
const lists = new WeakMap();

/**
 * Makes the elements of a container those of `items`, in their order. An element stays as long as its key does, and with it focus
 * and selection.
 * @template T
 * @param {Element} container
 * @param {T[]} items
 * @param {(item: T) => string} key
 * @param {(item: T) => {node: Element, update: (item: T) => void}} create
 */
export function keyed(container, items, key, create) {
  const known = lists.get(container) ?? new Map();
  lists.set(container, known);
  const gone = new Set(known.keys());
  /** @type {Element | null} */
  let before = null;
  for (const item of items) {
    const name = key(item);
    gone.delete(name);
    let entry = known.get(name);
    if (!entry) {
      entry = create(item);
      known.set(name, entry);
    }
    entry.update(item);
    // Elements of others may stand before those of the list, such as the head of a table.
    const place = before ? before.nextElementSibling : container.querySelector(':scope > [data-listed]');
    if (place !== entry.node) container.insertBefore(entry.node, place);
    entry.node.setAttribute('data-listed', '');
    before = entry.node;
  }
  for (const name of gone) {
    known.get(name)?.node.remove();
    known.delete(name);
  }
}
