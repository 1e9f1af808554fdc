// Addresses within the page.

/**
 * Where a model is shown.
 * @param {string} name
 * @param {string} [tab]
 */
export function link(name, tab = '') {
  return `#/models/${encodeURIComponent(name)}${tab ? `/${tab}` : ''}`;
}
