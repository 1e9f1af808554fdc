// Curves with their axes, drawn by hand.

import { el, setAttribute, setText, svg } from './dom.js';
import { NOTHING } from './format.js';

const WIDTH = 120;
const HEIGHT = 32;
/** Room for half of a line's width above and below. */
const MARGIN = 1;

/**
 * Values from the oldest to the newest, one for each second or minute; null is a gap.
 * @typedef {{kind: 'area' | 'line' | 'faint' | 'bad', values: (number | null)[]}} Series
 */

/**
 * A curve from 0 to a round number above the largest value. Where a pointer is, the numbers of that moment are told.
 * @param {string} label what it shows, for those who cannot see it
 * @param {(value: number) => string} unit how a value is written on the axis
 */
export function chart(label, unit) {
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const cursor = el('span', { class: 'cursor', hidden: true });
  const plot = el('div', { class: 'plot', role: 'img', 'aria-label': label }, drawing, cursor);
  const top = el('span', {});
  const told = el('span', { class: 'told' });
  const began = el('span', {}, '60 s ago');
  const node = el(
    'div',
    { class: 'chart' },
    plot,
    el('div', { class: 'axis-y', 'aria-hidden': 'true' }, top, el('span', {}, '0')),
    el('div', { class: 'axis-x', 'aria-hidden': 'true' }, began, told, el('span', {}, 'now')),
  );
  /** @type {Series[]} */
  let shown = [];
  /** @type {number | null} where the pointer is, from 0 to 1 */
  let pointed = null;
  /** Of what one value is. */
  let each = 's';

  function tell() {
    cursor.hidden = pointed === null;
    node.toggleAttribute('data-pointed', pointed !== null);
    if (pointed === null) return;
    const series = shown.filter(({ kind }) => kind !== 'area');
    const last = (series[0]?.values.length ?? 1) - 1;
    const index = Math.round(pointed * last);
    cursor.style.setProperty('left', `${last > 0 ? (index / last) * 100 : 100}%`);
    const numbers = series.map(({ values }) => values[index] ?? null).map((value) => (value === null ? NOTHING : unit(value)));
    setText(told, `${last - index} ${each} ago: ${numbers.join(' · ')}`);
  }

  plot.addEventListener('pointermove', (/** @type {PointerEvent} */ { clientX }) => {
    const { left, width } = plot.getBoundingClientRect();
    pointed = Math.min(1, Math.max(0, (clientX - left) / width));
    tell();
  });
  plot.addEventListener('pointerleave', () => {
    pointed = null;
    tell();
  });

  return {
    node,
    /**
     * @param {Series[]} series the first one that is no area comes first where numbers are told
     * @param {string} summary what there is to see
     * @param {'s' | 'min'} step of what one value is
     */
    draw(series, summary, step) {
      shown = series;
      each = step;
      setText(began, `60 ${step} ago`);
      const largest = roundUp(Math.max(0, ...series.flatMap(({ values }) => values.map((value) => value ?? 0))));
      while (drawing.childElementCount < series.length) drawing.append(svg('path'));
      series.forEach(({ kind, values }, index) => {
        const path = drawing.children[index];
        setAttribute(path, 'class', kind);
        setAttribute(path, 'd', kind === 'area' ? area(values, largest) : line(values, largest));
      });
      setText(top, largest > 0 ? unit(largest) : '');
      setAttribute(plot, 'aria-label', `${label}: ${summary}`);
      tell();
    },
  };
}

/**
 * The next of 1, 2, 5, 10, 20, 50, ...: an axis that seldom changes.
 * @param {number} value
 */
function roundUp(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  const factor = [1, 2, 5].find((one) => value <= one * power * (1 + 1e-9)) ?? 10;
  return factor * power;
}

/**
 * @param {number} index
 * @param {number} of
 */
function across(index, of) {
  return of < 2 ? WIDTH : Number(((index / (of - 1)) * WIDTH).toFixed(2));
}

/**
 * @param {number} value
 * @param {number} largest
 */
function up(value, largest) {
  const part = largest > 0 ? value / largest : 0;
  return Number((HEIGHT - MARGIN - part * (HEIGHT - 2 * MARGIN)).toFixed(2));
}

/**
 * @param {(number | null)[]} values
 * @param {number} largest
 */
function line(values, largest) {
  let path = '';
  let isDrawing = false;
  values.forEach((value, index) => {
    if (value === null) {
      isDrawing = false;
      return;
    }
    const x = across(index, values.length);
    // A line to where it begins: a value between two gaps is a dot.
    path += isDrawing ? `L${x} ${up(value, largest)}` : `M${x} ${up(value, largest)}h0`;
    isDrawing = true;
  });
  return path;
}

/**
 * @param {(number | null)[]} values
 * @param {number} largest
 */
function area(values, largest) {
  const points = values.map((value, index) => `L${across(index, values.length)} ${up(value ?? 0, largest)}`);
  return `M0 ${HEIGHT}${points.join('')}L${WIDTH} ${HEIGHT}Z`;
}
