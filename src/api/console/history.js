// What became of the changes of a model: each a line in time, phase by phase.

import { el } from './dom.js';
import { ago, NOTHING, seconds, when, words } from './format.js';
import { link } from './link.js';

/** @typedef {import('./api.js').Change} Change */

/** Colours of what a change has come to. */
const TONES = new Map([
  ['ready', 'good'],
  ['reloaded', 'good'],
  ['promoted', 'good'],
  ['failed', 'bad'],
  ['rolled_back', 'bad'],
  ['rollout_aborted', 'warn'],
  ['abandoned', 'warn'],
]);

/** Less of the whole than this is not told as time that it waited. */
const WAITED = 0.02;
/** A phase that took less, in seconds, is drawn and not told. */
const TOLD = 5e-7;

/**
 * The time in which it was in no phase: its files were looked for, and it waited for its turn.
 * @param {Change} change
 */
function waited({ phases, total_seconds: total }) {
  const rest = total - phases.reduce((sum, phase) => sum + phase.seconds, 0);
  return rest > WAITED * total ? rest : 0;
}

/**
 * The phases of a change from left to right, as wide as they were long. What stood still lies below them.
 * @param {Change} change
 */
function timeline(change) {
  const before = waited(change);
  const parts = before > 0 ? [{ phase: 'waited', seconds: before }, ...change.phases] : change.phases;
  const all = parts.reduce((sum, phase) => sum + phase.seconds, 0);
  const described = parts.map((phase) => `${words(phase.phase)} ${seconds(phase.seconds)}`).join(', ');
  const segments = parts.map(({ phase, seconds: time }) => {
    const segment = el('span', { class: 'segment', 'data-phase': phase, title: `${words(phase)} ${seconds(time)}` });
    segment.style.setProperty('flex-grow', String(time / all));
    return segment;
  });
  const rested = el('span', { class: 'rested', title: `stood still for ${seconds(change.rested_seconds)}` });
  rested.style.setProperty('margin-left', `${((before / all) * 100).toFixed(1)}%`);
  rested.style.setProperty('width', `${(Math.min(1 - before / all, change.rested_seconds / all) * 100).toFixed(1)}%`);
  return el(
    'div',
    { class: 'timeline', role: 'img', 'aria-label': described },
    el('div', { class: 'segments' }, ...segments),
    change.rested_seconds > 0 ? rested : null,
  );
}

/** @param {Change} change */
function legend(change) {
  const { phases, rested_seconds: rested, total_seconds: total } = change;
  const entry = (/** @type {string} */ phase, /** @type {number} */ time) =>
    el('li', { 'data-phase': phase }, `${words(phase)} `, el('b', {}, seconds(time)));
  const before = waited(change);
  const entries = phases.filter((phase) => phase.seconds >= TOLD).map(({ phase, seconds: time }) => entry(phase, time));
  if (before > 0) entries.unshift(entry('waited', before));
  if (rested > 0) entries.push(entry('rested', rested));
  entries.push(el('li', { class: 'total' }, 'in all ', el('b', {}, seconds(total))));
  return el('ul', { class: 'legend' }, ...entries);
}

/** @param {Change} change */
function versions({ change, previous_version: before, live_version: after, version }) {
  // Of a version beside the live one, or one that never came to be live.
  if (version && before === null && (version !== after || change !== 'ready')) return `version ${version}`;
  if (before !== after) return `${before ?? NOTHING} → ${after ?? NOTHING}`;
  return version ? `version ${version}` : '';
}

/**
 * @param {Change} change
 * @param {boolean} isOfMany whether it must be said which model it is of
 * @returns {HTMLElement}
 */
function entry(change, isOfMany) {
  return el(
    'li',
    { class: 'change' },
    el(
      'div',
      { class: 'change-head' },
      el('span', { class: 'pill', 'data-tone': TONES.get(change.change) ?? 'quiet' }, words(change.change)),
      isOfMany ? el('a', { class: 'of', href: link(change.model, 'history') }, change.model) : null,
      el('span', { class: 'versions' }, versions(change)),
      change.asker ? el('span', { class: 'quiet' }, `by ${change.asker}`) : null,
      el('time', { class: 'quiet', datetime: change.at, title: when(change.at) }, ago(change.at)),
    ),
    change.phases.length > 0 ? timeline(change) : null,
    change.phases.length > 0 ? legend(change) : null,
    change.error ? el('p', { class: 'trouble' }, change.reason ? `${change.reason}: ${change.error}` : change.error) : null,
  );
}

/**
 * @param {Change[]} changes the newest first
 * @returns {Node[]}
 */
export function history(changes) {
  if (changes.length === 0) {
    return [el('p', { class: 'empty' }, 'Nothing has changed yet. With audit.file the history survives a restart.')];
  }
  return [el('ol', { class: 'changes' }, ...changes.map((change) => entry(change, false)))];
}

/**
 * The last changes of all models.
 * @param {Change[]} changes the newest first
 * @returns {Node[]}
 */
export function latest(changes) {
  if (changes.length === 0) return [el('p', { class: 'empty' }, 'Nothing has changed yet.')];
  return [el('ol', { class: 'changes' }, ...changes.map((change) => entry(change, true)))];
}
