// A field to draw on with a mouse, a finger or a pen, and what a model would see of it.

import { el } from './dom.js';

/** @typedef {{x: number, y: number}} Point from 0 to 1 */

/** Pixels of the field, each way. */
const FIELD = 256;
/** Each pixel of the small picture is the mean of so many by so many. */
const FINE = 16;
/** Up to this size pictures are filled from edge to edge, as the data set of the 8x8 digits is; larger ones have a margin, as MNIST. */
const TIGHT = 16;

/**
 * @param {{height: number, width: number}} size of the small picture
 * @param {(ink: number[]) => void} drawn is told of each change: row by row, from 0 to 1
 * @param {() => void} cleared the reader has cleared it
 */
export function pad({ height, width }, drawn, cleared) {
  const field = el('canvas', {
    class: 'field',
    width: FIELD,
    height: Math.round((FIELD * height) / width),
    role: 'img',
    'aria-label': 'A field to draw on. Without a pointer, edit the numbers of the request.',
  });
  const hint = el('span', { class: 'hint', 'aria-hidden': 'true' }, 'draw here');
  const seen = el('canvas', { class: 'seen', width, height, role: 'img', 'aria-label': 'What the model sees' });
  const fit = el('input', { type: 'checkbox', checked: true });
  const clear = el('button', { type: 'button', click: () => cleared() }, 'Clear');
  const node = el(
    'div',
    { class: 'pad' },
    el('div', { class: 'field-frame' }, field, hint),
    el(
      'div',
      { class: 'pad-side' },
      el('figure', {}, seen, el('figcaption', { class: 'quiet' }, `what the model sees, ${width}×${height}`)),
      el('label', { class: 'check' }, fit, 'fit to the frame'),
      clear,
    ),
  );
  /** @type {Point[][]} */
  let strokes = [];
  const fine = document.createElement('canvas');
  fine.width = width * FINE;
  fine.height = height * FINE;
  const pen = /** @type {CanvasRenderingContext2D} */ (field.getContext('2d'));
  const small = /** @type {CanvasRenderingContext2D} */ (seen.getContext('2d'));
  const sampler = /** @type {CanvasRenderingContext2D} */ (fine.getContext('2d', { willReadFrequently: true }));

  /** @param {PointerEvent} event */
  function point(event) {
    const box = field.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }

  function changed() {
    hint.hidden = true;
    paint(pen, strokes, { scale: 1, left: 0, top: 0 }, thickness(height) * field.height);
    const ink = sampled();
    show(ink);
    drawn(ink);
  }

  /** The strokes in the size that the model takes. */
  function sampled() {
    const place = fit.checked ? fitted(strokes, height) : { scale: 1, left: 0, top: 0 };
    paint(sampler, strokes, place, thickness(height) * fine.height);
    const { data } = sampler.getImageData(0, 0, fine.width, fine.height);
    const sums = new Array(width * height).fill(0);
    for (let y = 0; y < fine.height; y += 1) {
      for (let x = 0; x < fine.width; x += 1) {
        sums[Math.floor(y / FINE) * width + Math.floor(x / FINE)] += data[(y * fine.width + x) * 4];
      }
    }
    return sums.map((sum) => sum / (255 * FINE * FINE));
  }

  /** @param {number[]} ink */
  function show(ink) {
    const image = small.createImageData(width, height);
    ink.forEach((value, index) => image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * index));
    small.putImageData(image, 0, 0);
  }

  field.addEventListener('pointerdown', (/** @type {PointerEvent} */ event) => {
    if (event.button !== 0) return;
    field.setPointerCapture(event.pointerId);
    strokes.push([point(event)]);
    changed();
  });
  field.addEventListener('pointermove', (/** @type {PointerEvent} */ event) => {
    if (!field.hasPointerCapture(event.pointerId)) return;
    const several = event.getCoalescedEvents?.() ?? [];
    strokes.at(-1)?.push(...(several.length > 0 ? several : [event]).map(point));
    changed();
  });
  fit.addEventListener('change', () => strokes.length > 0 && changed());

  /** As it is at first. */
  function empty() {
    strokes = [];
    hint.hidden = false;
    paint(pen, strokes, { scale: 1, left: 0, top: 0 }, 1);
    show(new Array(width * height).fill(0));
  }

  empty();
  return { node, empty };
}

/**
 * The width of the pen, of the height: about one and a half pixels of a small picture.
 * @param {number} height
 */
function thickness(height) {
  return height <= TIGHT ? 0.17 : 0.09;
}

/**
 * Where strokes go so that they fill the frame, in its middle.
 * @param {Point[][]} strokes
 * @param {number} height
 */
function fitted(strokes, height) {
  const points = strokes.flat();
  if (points.length === 0) return { scale: 1, left: 0, top: 0 };
  const [xs, ys] = [points.map(({ x }) => x), points.map(({ y }) => y)];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  const room = (height <= TIGHT ? 1 : 0.72) - thickness(height);
  // Both ways by the same factor; a dot stays one. The field is as high for its width as the picture is.
  const longest = Math.max(right - left, bottom - top, 0.1);
  const scale = room / longest;
  return { scale, left: 0.5 - (scale * (left + right)) / 2, top: 0.5 - (scale * (top + bottom)) / 2 };
}

/**
 * Light ink on a dark ground.
 * @param {CanvasRenderingContext2D} context
 * @param {Point[][]} strokes
 * @param {{scale: number, left: number, top: number}} place
 * @param {number} thick in pixels of the canvas
 */
function paint(context, strokes, { scale, left, top }, thick) {
  const { width, height } = context.canvas;
  context.fillStyle = '#000';
  context.fillRect(0, 0, width, height);
  context.strokeStyle = '#fff';
  context.lineWidth = thick;
  context.lineCap = 'round';
  context.lineJoin = 'round';
  for (const stroke of strokes) {
    context.beginPath();
    stroke.forEach(({ x, y }, index) => {
      const at = /** @type {const} */ ([(x * scale + left) * width, (y * scale + top) * height]);
      if (index === 0) context.moveTo(...at);
      // A line to where it begins: a stroke of one point is a dot.
      context.lineTo(...at);
    });
    context.stroke();
  }
}
