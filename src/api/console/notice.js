// One line at the bottom of the page: what a click has led to, or what is wrong.

import { byId, setAttribute, setText } from './dom.js';

/** How long it is shown, in milliseconds. */
const SHOWN = 6000;

const line = byId('notice');
/** Where the line stands while nothing is open, and where it came from. */
const home = line.parentElement;

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/**
 * Says something.
 * @param {string} text
 * @param {'good' | 'bad'} [tone]
 * @param {{stays?: boolean}} [how] until something else is said
 */
export function tell(text, tone = 'good', { stays = false } = {}) {
  clearTimeout(timer);
  // An open dialog covers what is outside of it.
  const dialog = [...document.querySelectorAll('dialog[open]')].at(-1);
  (dialog ?? home)?.append(line);
  dialog?.addEventListener('close', () => home?.append(line), { once: true });
  setText(line, text);
  setAttribute(line, 'data-tone', tone);
  line.classList.add('shown');
  timer = stays ? undefined : setTimeout(hush, SHOWN);
}

/** Takes the line away. */
function hush() {
  clearTimeout(timer);
  line.classList.remove('shown');
}
