// A new version beside the live one: how many see it, and how both do.

import { bar } from './bar.js';
import { el, setText } from './dom.js';
import { ago, count, percent, seconds, when, words } from './format.js';

/** @typedef {import('./api.js').Rollout} Rollout */
/** @typedef {import('./api.js').Side} Side */

/**
 * What there is to compare: a name, and how it reads of one side. A side that has answered nothing has no latency.
 * @type {[string, (side: Side) => string][]}
 */
const ROWS = [
  ['answered', (side) => count(side.answered)],
  ['errors', (side) => percent(side.answered + side.failed + side.late ? side.error_rate : null)],
  ['failed', (side) => count(side.failed)],
  ['late', (side) => count(side.late)],
  ['p50', (side) => seconds(side.p50_seconds || null)],
  ['p99', (side) => seconds(side.p99_seconds || null)],
  ['pass p50', (side) => seconds(side.compute_p50_seconds || null)],
  ['pass p99', (side) => seconds(side.compute_p99_seconds || null)],
];

/** What of it fits into a line. */
const BRIEFLY = ['answered', 'errors', 'p50', 'p99'];

/** A line below a model in the list. */
export function brief() {
  const share = bar('');
  const pairs = ROWS.filter(([name]) => BRIEFLY.includes(name)).map(([name, read]) => {
    const [live, candidate] = [el('span'), el('strong')];
    return { live, candidate, read, node: el('span', { class: 'pair' }, `${name} `, live, ' → ', candidate) };
  });
  const verdict = el('p', { class: 'verdict' });
  const node = el('div', { class: 'brief' }, share.node, ...pairs.map((pair) => pair.node), verdict);
  return {
    node,
    /** @param {Rollout} rollout */
    show(rollout) {
      share.rename(`${rollout.strategy}: version ${rollout.version} beside ${rollout.live_version}`);
      share.show(rollout.percent / 100, percent(rollout.percent / 100));
      setText(verdict, rollout.verdict);
      for (const { live, candidate, read } of pairs) {
        setText(live, read(rollout.live));
        setText(candidate, read(rollout.candidate));
      }
    },
  };
}

/**
 * All of it.
 * @param {Rollout} rollout
 * @returns {Node[]}
 */
export function panel(rollout) {
  const share = bar(`callers that see version ${rollout.version}`);
  share.show(rollout.percent / 100, percent(rollout.percent / 100));
  const steps = rollout.steps.map((step, index) =>
    el('li', { 'aria-current': index === rollout.step && rollout.state === 'running' ? 'step' : null }, `${step} %`),
  );
  const began = el('time', { datetime: rollout.since, title: when(rollout.since) }, ago(rollout.since));
  const rows = ROWS.map(([name, read]) =>
    el('tr', {}, el('th', { scope: 'row' }, name), el('td', {}, read(rollout.live)), el('td', {}, read(rollout.candidate))),
  );
  const evidence = rollout.checks.map(({ name, evidence, text }) => {
    const made = bar(name);
    made.show(evidence, percent(evidence), evidence >= 1 ? 'bad' : evidence >= 0.4 ? 'warn' : '');
    return el('div', { class: 'evidence' }, made.node, el('p', { class: 'quiet' }, text));
  });
  return [
    el(
      'p',
      {},
      el('span', { class: 'pill', 'data-tone': tone(rollout.state) }, words(rollout.state)),
      ` ${rollout.strategy} of version ${rollout.version} beside ${rollout.live_version}, begun `,
      began,
    ),
    el('p', { class: 'verdict' }, rollout.verdict),
    share.node,
    ...(steps.length > 1 ? [el('ol', { class: 'steps', 'aria-label': 'steps' }, ...steps)] : []),
    el(
      'table',
      { class: 'compare' },
      el(
        'thead',
        {},
        el('tr', {}, el('td'), el('th', { scope: 'col' }, `${rollout.live_version} live`), el('th', { scope: 'col' }, `${rollout.version} new`)),
      ),
      el('tbody', {}, ...rows),
    ),
    el(
      'p',
      { class: 'quiet' },
      `${count(rollout.fallbacks)} answered by the live version in its place · ${count(rollout.different)} of ${count(rollout.compared)} compared answers differ`,
    ),
    el('h4', {}, 'Evidence that it is bad'),
    ...evidence,
  ];
}

/** @param {string} state */
function tone(state) {
  return { running: 'busy', promoted: 'good', rolled_back: 'bad' }[state] ?? 'quiet';
}
