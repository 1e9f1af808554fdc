// Schemas: what they are called, their parts, and a value that fits where the document has no example.

/** Deeper than any schema is: one that names itself ends here. */
const DEEPEST = 8;

/**
 * Follows a reference within the document.
 * @param {any} spec
 * @param {any} schema
 * @returns {any}
 */
function resolved(spec, schema) {
  const name = schema?.$ref;
  if (!name) return schema ?? {};
  return name.replace(/^#\//, '').split('/').reduce((/** @type {any} */ at, /** @type {string} */ key) => at?.[key], spec) ?? {};
}

/**
 * What a schema allows, in a few words.
 * @param {any} spec
 * @param {any} schema
 * @returns {string}
 */
function typeOf(spec, schema) {
  const { type, items, format, additionalProperties, minimum } = resolved(spec, schema);
  if (type === 'array') return items ? `list of ${plural(typeOf(spec, items))}` : 'list';
  if (type === 'object' && typeof additionalProperties === 'object') return `object of ${plural(typeOf(spec, additionalProperties))}`;
  if (format === 'binary') return 'bytes';
  const name = Array.isArray(type) ? type.join(' or ') : (type ?? 'any');
  return minimum === undefined ? name : `${name} ≥ ${minimum}`;
}

/** @param {string} name */
function plural(name) {
  return name.split(' or ').map((word) => word.replace(/^(\w+)/, (first) => (first === 'any' || first === 'bytes' ? first : `${first}s`))).join(' or ');
}

/**
 * The parts of a schema, each with its own below it. Null: it has none.
 * @param {any} spec
 * @param {any} given
 * @param {number} [depth]
 * @returns {HTMLElement | null}
 */
function parts(spec, given, depth = 0) {
  const schema = resolved(spec, given);
  if (depth > DEEPEST) return null;
  if (schema.type === 'array' && schema.items) return parts(spec, schema.items, depth + 1);
  const properties = Object.entries(schema.properties ?? {});
  if (properties.length === 0) {
    const each = schema.additionalProperties;
    return each && typeof each === 'object' ? parts(spec, each, depth + 1) : null;
  }
  const rows = properties.map(([name, part]) => {
    const needed = schema.required?.includes(name);
    return el('li', {}, ...line(spec, name, part, needed), parts(spec, part, depth + 1));
  });
  return el('ul', { class: 'parts' }, ...rows);
}

/**
 * @param {any} spec
 * @param {string} name
 * @param {any} part
 * @param {boolean} needed
 * @returns {any[]}
 */
function line(spec, name, part, needed) {
  const schema = resolved(spec, part);
  const choices = schema.enum ?? [];
  return [
    el('p', { class: 'part' }, el('code', {}, name), el('span', { class: 'type' }, typeOf(spec, part)), needed && el('span', { class: 'needed' }, 'required')),
    schema.description ? el('p', { class: 'quiet' }, ...prose(schema.description)) : null,
    choices.length > 0 && el('p', { class: 'quiet' }, 'One of ', ...choices.flatMap((/** @type {string} */ one, /** @type {number} */ at) => [at ? ' ' : '', el('code', {}, one)])),
  ];
}

/**
 * The document's own example, or a value that fits.
 * @param {any} spec
 * @param {any} media
 * @returns {any}
 */
function exampleOf(spec, media) {
  return media.example ?? made(spec, media.schema, 0);
}

/**
 * @param {any} spec
 * @param {any} given
 * @param {number} depth
 * @returns {any}
 */
function made(spec, given, depth) {
  const schema = resolved(spec, given);
  if (schema.example !== undefined) return schema.example;
  if (schema.enum) return schema.enum[0];
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === 'array') return schema.items && depth < DEEPEST ? [made(spec, schema.items, depth + 1)] : [];
  if (type === 'object') {
    const properties = Object.entries(schema.properties ?? {});
    if (properties.length > 0) return Object.fromEntries(properties.map(([name, part]) => [name, made(spec, part, depth + 1)]));
    const each = schema.additionalProperties;
    return each && typeof each === 'object' && depth < DEEPEST ? { '…': made(spec, each, depth + 1) } : {};
  }
  return { string: '…', integer: schema.minimum ?? 0, number: 0, boolean: true }[/** @type {string} */ (type)] ?? null;
}
