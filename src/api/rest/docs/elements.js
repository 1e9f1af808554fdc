// Small help with the document. What the server says goes in as text, never as markup.

/**
 * A new element. Attributes that are functions are listeners. What is null, undefined or false is left out, as attribute and as child.
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

/**
 * A text in which words between backticks are code.
 * @param {string} text
 * @returns {(Node | string)[]}
 */
function prose(text) {
  return text.split('`').map((part, index) => (index % 2 ? el('code', {}, part) : part));
}

/**
 * A path whose parameters stand out, and which may break after a slash.
 * @param {string} path
 */
function pathOf(path) {
  const parts = path.split(/(\{[^}]*\}|\/)/).filter(Boolean);
  const shown = parts.flatMap((part) => (part === '/' ? [part, el('wbr')] : part.startsWith('{') ? [el('var', {}, part)] : [part]));
  return el('code', { class: 'path' }, ...shown);
}

/** @param {string} method */
function methodOf(method) {
  return el('span', { class: 'method', 'data-method': method }, method.toUpperCase());
}

/** Items of a list on a line. */
const ACROSS = 12;

/**
 * @param {string[]} items
 * @param {string} indent
 */
function listed(items, indent) {
  if (items.length <= ACROSS) return `[${items.join(', ')}]`;
  const rows = Array.from({ length: Math.ceil(items.length / ACROSS) }, (_, row) => items.slice(row * ACROSS, (row + 1) * ACROSS).join(', '));
  return `[\n${rows.map((row) => `${indent}  ${row}`).join(',\n')}\n${indent}]`;
}

/**
 * JSON to be read: lists of numbers do not take a line for each.
 * @param {any} value
 * @param {string} [indent]
 * @returns {string}
 */
function readable(value, indent = '') {
  const deeper = `${indent}  `;
  if (Array.isArray(value)) {
    if (value.every((item) => item === null || typeof item !== 'object')) return listed(value.map((item) => JSON.stringify(item)), indent);
    return `[\n${value.map((item) => deeper + readable(item, deeper)).join(',\n')}\n${indent}]`;
  }
  if (value === null || typeof value !== 'object') return JSON.stringify(value);
  const lines = Object.entries(value).map(([key, item]) => `${deeper}${JSON.stringify(key)}: ${readable(item, deeper)}`);
  return lines.length ? `{\n${lines.join(',\n')}\n${indent}}` : '{}';
}
