// A bar that shows a part of a whole.

import { el, setAttribute, setText } from './dom.js';

/** @param {string} label */
export function bar(label) {
  const fill = el('span', { class: 'fill' });
  const name = el('span', { class: 'bar-name', title: label }, label);
  const number = el('span', { class: 'bar-number' });
  const track = el('span', { class: 'track', role: 'meter', 'aria-label': label, 'aria-valuemin': 0, 'aria-valuemax': 100 }, fill);
  const node = el('div', { class: 'bar' }, name, track, number);
  return {
    node,
    /**
     * @param {number | null} part from 0 to 1
     * @param {string} text
     * @param {'' | 'good' | 'warn' | 'bad' | 'strong'} [tone]
     */
    show(part, text, tone = '') {
      const shown = Math.min(1, Math.max(0, part ?? 0));
      fill.style.setProperty('--part', shown.toFixed(4));
      setAttribute(track, 'aria-valuenow', String(Math.round(shown * 100)));
      setAttribute(track, 'aria-valuetext', text);
      setAttribute(node, 'data-tone', tone || null);
      setText(number, text);
    },
    /** @param {string} text */
    rename(text) {
      setText(name, text);
      setAttribute(name, 'title', text);
      setAttribute(track, 'aria-label', text);
    },
  };
}
