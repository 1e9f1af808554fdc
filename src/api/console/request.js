// Requests that fit a model, made from its signature. What is shown is what is sent, but for words that stand for many numbers.

/** @typedef {import('./api.js').Tensor} Tensor */
/** @typedef {import('./api.js').Signature} Signature */
/** @typedef {{name: string, datatype: string, shape: number[], data: any}} Input */
/** @typedef {{inputs: Input[], [more: string]: any}} Request */
/** @typedef {{name: string, datatype: string, shape: number[], height: number, width: number}} Image */

/** More elements than this are written as a word. */
const WRITTEN = 1024;
/** More are not made up: the server takes 64 MiB of JSON. */
const MADE_UP = 4_000_000;
/** A picture that can be drawn has no more rows or columns. */
const DRAWN = 64;

/** Datatypes of arguments that are no tensors. */
const SCALARS = new Map([['int', 'INT64'], ['float', 'FP64'], ['bool', 'BOOL']]);

/** What JSON cannot say. */
export const NOT_IN_JSON = new Set(['FP16', 'BF16']);

/** @param {number[]} shape */
function elements(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

/**
 * Splits at commas that are in no brackets: the types within `Tuple[...]`.
 * @param {string} types
 */
function split(types) {
  const parts = [''];
  let depth = 0;
  for (const letter of types) {
    if (letter === '[') depth += 1;
    if (letter === ']') depth -= 1;
    if (letter === ',' && depth === 0) parts.push('');
    else parts[parts.length - 1] += letter;
  }
  return parts.map((part) => part.trim());
}

/**
 * The inputs that fill an argument of that type. Sizes that are open are 1.
 * @param {string} name
 * @param {string} type as TorchScript writes it
 * @param {string | null} datatype
 * @param {number[] | null} shape
 * @returns {Input[]}
 */
function inputs(name, type, datatype, shape) {
  const inner = type.match(/^(Optional|List|Dict|Tuple)\[(.*)\]$/);
  if (inner?.[1] === 'Optional') return inputs(name, inner[2], datatype, shape);
  if (inner?.[1] === 'List') return inputs(`${name}.0`, 'Tensor', datatype, shape);
  if (inner?.[1] === 'Dict') return inputs(`${name}.key`, 'Tensor', datatype, shape);
  if (inner?.[1] === 'Tuple') {
    return split(inner[2]).flatMap((item, index) => inputs(`${name}.${index}`, item, datatype, shape));
  }
  const sizes = (shape ?? [1]).map((size) => (size < 0 ? 1 : size));
  return [zeros({ name, datatype: datatype ?? SCALARS.get(type) ?? 'FP32', shape: sizes, data: [] })];
}

/**
 * @param {Input} input
 * @returns {Input}
 */
function zeros(input) {
  const many = elements(input.shape);
  return { ...input, data: many > WRITTEN ? 'zeros' : new Array(many).fill(input.datatype === 'BOOL' ? false : 0) };
}

/**
 * A request of zeros. What may be left out is left out.
 * @param {Signature} signature
 * @returns {Request}
 */
export function sample({ inputs: tensors }) {
  const needed = tensors.filter((tensor) => !tensor.optional);
  return { inputs: needed.flatMap(({ name, script_type, datatype, shape }) => inputs(name, script_type, datatype, shape)) };
}

/**
 * The first input, where it is a small grey picture, as one row: `[-1, 1, height, width]` or `[-1, height, width]`.
 * @param {Signature} signature
 * @returns {Image | null}
 */
export function picture({ inputs: tensors }) {
  const [first] = tensors;
  if (!first?.shape || NOT_IN_JSON.has(first.datatype ?? '') || first.datatype === 'BOOL') return null;
  const [rows, ...rest] = first.shape;
  const isOne = (/** @type {number} */ size) => size === 1 || size === -1;
  const sides = rest.length === 3 && rest[0] === 1 ? rest.slice(1) : rest;
  const [height, width] = sides;
  const isSmall = sides.length === 2 && sides.every((side) => side > 1 && side <= DRAWN);
  if (!isOne(rows) || !isSmall) return null;
  return { name: first.name, datatype: first.datatype ?? 'FP32', shape: [1, ...rest], height, width };
}

/**
 * A picture's ink as elements of its datatype: from 0 to 1 where that has fractions, else to its largest grey.
 * @param {Image} image
 * @param {number[]} ink row by row, from 0 to 1
 */
export function pixels({ datatype }, ink) {
  if (datatype.startsWith('FP')) return ink.map((value) => Number(value.toFixed(3)));
  const most = datatype === 'INT8' ? 127 : 255;
  return ink.map((value) => Math.round(value * most));
}

/**
 * A request as JSON that can be read and edited: a row of a tensor is a line.
 * @param {Request} request
 */
export function written(request) {
  const { inputs: tensors, ...more } = request;
  const lines = (Array.isArray(tensors) ? tensors : []).map((input) => `    ${line(input)}`);
  const rest = Object.entries(more).map(([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)}`);
  return `{\n${[...rest, `  "inputs": [\n${lines.join(',\n')}\n  ]`].join(',\n')}\n}`;
}

/** @param {Input} input */
function line({ data, ...head }) {
  const start = JSON.stringify(head).slice(0, -1);
  if (!Array.isArray(data) || data.length === 0) return `${start}, "data": ${JSON.stringify(data)}}`;
  const across = Math.max(1, head.shape?.at(-1) ?? data.length);
  // One row stands in the line itself.
  if (data.length <= across) return `${start}, "data": [${data.map((value) => JSON.stringify(value)).join(', ')}]}`;
  const rows = [];
  for (let at = 0; at < data.length; at += across) {
    rows.push(`      ${data.slice(at, at + across).map((value) => JSON.stringify(value)).join(', ')}`);
  }
  return `${start}, "data": [\n${rows.join(',\n')}\n    ]}`;
}

/**
 * What is sent: words that stand for numbers are these numbers.
 * @param {any} request
 */
export function expanded(request) {
  if (!Array.isArray(request?.inputs)) throw new Error('The request needs "inputs", a list of tensors.');
  return { ...request, inputs: request.inputs.map((/** @type {any} */ input) => ({ ...input, data: numbers(input) })) };
}

/** @param {any} input */
function numbers({ name, datatype, shape, data }) {
  if (!['zeros', 'ones', 'random'].includes(data)) return data;
  const many = Array.isArray(shape) ? elements(shape) : NaN;
  if (!(many >= 0 && many <= MADE_UP)) {
    throw new Error(`Input ${name}: "${data}" needs a shape of at most ${MADE_UP.toLocaleString('en')} elements.`);
  }
  const isBool = datatype === 'BOOL';
  const one = { zeros: () => (isBool ? false : 0), ones: () => (isBool ? true : 1), random: () => random(datatype) };
  return Array.from({ length: many }, one[/** @type {'zeros' | 'ones' | 'random'} */ (data)]);
}

/** @param {string} datatype */
function random(datatype) {
  if (datatype === 'BOOL') return Math.random() < 0.5;
  return datatype?.startsWith('FP') ? Number(Math.random().toFixed(4)) : Math.floor(Math.random() * 100);
}

/**
 * The same request for a terminal.
 * @param {string} path
 * @param {string} body
 * @param {Record<string, string>} headers
 */
export function curl(path, body, headers) {
  const quoted = (/** @type {string} */ text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = Object.entries(headers).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)} `);
  return `curl -s ${quoted(new URL(path, document.baseURI).href)} ${lines.join('')}-d ${quoted(body)}`;
}
