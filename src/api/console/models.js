// The list of models.

import { byId, copy, el, keyed, setAttribute, setText } from './dom.js';
import { bytes, count, NOTHING, percent, rate, reasons, seconds, short, when, words } from './format.js';
import { link } from './link.js';
import { tell } from './notice.js';
import { Rates } from './rates.js';
import { brief } from './rollout.js';

/** @typedef {import('./api.js').Model} Model */

/** Models that are listed at first. */
const FEW = 25;
/** Models that are listed at most; others are found by their name. */
const MOST = 200;

const COLUMNS = ['state', 'live', 'digest', 'memory', 'labels', 'requests/s', 'p99', 'failed'];
const NUMBERS = new Set(['memory', 'requests/s', 'p99', 'failed']);

/**
 * A model's state in a word or two: one whose requests are rejected is not ready.
 * @param {Model} model
 */
export function state(model) {
  return model.breaker_open ? 'breaker open' : words(model.state);
}

/**
 * The colour of a model's state.
 * @param {Model} model
 */
export function tone(model) {
  if (model.breaker_open || model.state === 'failed') return 'bad';
  if (model.state === 'loading' || model.state === 'reloading') return 'busy';
  if (model.last_error) return 'warn';
  return model.state === 'ready' ? 'good' : 'quiet';
}

/**
 * What is wrong with it, in one line; empty where nothing is.
 * @param {Model} model
 */
export function trouble(model) {
  if (model.breaker_open) return 'It only fails: requests are rejected except for a trial every 1 to 30 s.';
  return model.last_error ?? '';
}

/**
 * A digest that can be copied.
 * @param {string | null} sha256
 */
export function digest(sha256) {
  if (!sha256) return el('span', { class: 'quiet' }, NOTHING);
  const button = el('button', { type: 'button', class: 'digest', title: `${sha256}: click to copy`, 'aria-label': `Copy digest ${short(sha256)}` }, short(sha256));
  button.addEventListener('click', async () => {
    const done = await copy(sha256, button);
    tell(done ? 'The digest is copied.' : sha256, done ? 'good' : 'bad');
  });
  return button;
}

/** @param {Model} first */
function row(first) {
  const note = el('p', { class: 'trouble' });
  const name = el('th', { scope: 'row' }, el('a', { href: link(first.name) }, first.name));
  const pill = el('span', { class: 'pill' });
  const cells = new Map(COLUMNS.map((column) => [column, el('td', { 'data-label': column, class: NUMBERS.has(column) ? 'number' : null })]));
  const cell = (/** @type {string} */ column) => /** @type {Element} */ (cells.get(column));
  cell('state').append(pill);
  const rollout = brief();
  const why = el('p', { class: 'reasons' });
  const below = el('tr', { class: 'below', hidden: true }, el('td', { colspan: COLUMNS.length + 1 }, note, why, rollout.node));
  const node = el('tbody', {}, el('tr', {}, name, ...cells.values()), below);
  /** @type {string | null | undefined} */
  let sha256;
  return {
    node,
    /** @param {{model: Model, perSecond: number | null}} now */
    update({ model, perSecond }) {
      setText(pill, state(model));
      setAttribute(pill, 'data-tone', tone(model));
      setText(note, trouble(model));
      setAttribute(note, 'title', trouble(model));
      setText(cell('live'), model.live_version ?? NOTHING);
      setAttribute(cell('live'), 'title', model.live_since ? `since ${when(model.live_since)}` : null);
      if (sha256 !== model.sha256) {
        sha256 = model.sha256;
        cell('digest').replaceChildren(digest(sha256));
      }
      setText(cell('memory'), bytes(model.resident_bytes));
      setAttribute(cell('memory'), 'title', `archive ${bytes(model.bytes)}, loaded ${model.load}`);
      const labels = Object.entries(model.labels).map(([label, version]) => `${label} ${version}`);
      setText(cell('labels'), labels.join(', ') || NOTHING);
      setText(cell('requests/s'), rate(perSecond));
      setAttribute(cell('requests/s'), 'title', `${count(model.answered)} answered, ${count(model.failed)} not, since it was loaded`);
      const { hour } = model;
      setText(cell('p99'), seconds(hour?.p99_seconds));
      setText(cell('failed'), hour ? percent(hour.failed / (hour.answered + hour.failed)) : NOTHING);
      setAttribute(cell('failed'), 'title', hour ? `${count(hour.failed)} of ${count(hour.answered + hour.failed)} in the last hour` : null);
      setAttribute(cell('failed'), 'data-tone', hour && hour.failed > 0 ? 'bad' : null);
      setText(why, hour && hour.failed > 0 ? `${reasons(hour.reasons)} in the last hour` : '');
      for (const one of cells.values()) setAttribute(one, 'data-none', one.textContent === NOTHING ? '' : null);
      rollout.node.hidden = !model.rollout;
      below.hidden = !model.rollout && !trouble(model) && why.textContent === '';
      if (model.rollout) rollout.show(model.rollout);
    },
  };
}

/**
 * How many there are of each state, where that is not all of them.
 * @param {Model[]} all
 */
function summary(all) {
  const counts = new Map();
  for (const name of all.map(state)) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].toSorted(([a], [b]) => a.localeCompare(b)).map(([name, number]) => `${count(number)} ${name}`).join(' · ');
}

/**
 * What wants a look comes first, then by name.
 * @param {Model[]} all in the order of their names
 */
function ranked(all) {
  const rank = (/** @type {Model} */ model) => (trouble(model) ? 0 : model.rollout ? 1 : 2);
  return all.toSorted((a, b) => rank(a) - rank(b));
}

/** Shows them in the table of the page. */
export function models() {
  const table = byId('models');
  const empty = byId('models-empty');
  const note = byId('models-note');
  /** @type {HTMLInputElement} */
  const filter = byId('filter');
  const rates = new Rates();
  /** @type {HTMLButtonElement} */
  const more = byId('models-more');
  /** @type {Model[]} */
  let last = [];
  let most = FEW;

  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    const found = ranked(last).filter((model) => model.name.toLowerCase().includes(wanted) || state(model) === wanted);
    const shown = found.slice(0, most).map((model) => ({ model, perSecond: rates.of(model.name) }));
    keyed(table, shown, ({ model }) => model.name, ({ model }) => row(model));
    setText(note, summary(last));
    more.hidden = most === MOST || found.length <= most;
    setText(more, `Show ${count(Math.min(MOST, found.length) - most)} more`);
    setText(empty, hint(wanted, found.length));
    empty.hidden = empty.textContent === '';
    table.hidden = found.length === 0;
  }

  /**
   * What to do next where there is little to see.
   * @param {string} wanted
   * @param {number} found
   */
  function hint(wanted, found) {
    if (found > MOST && most === MOST) return `${count(found - MOST)} more: type a part of a name to find them.`;
    if (found > 0) return '';
    if (wanted && last.length > 0) return `No model has “${wanted}” in its name, or for its state.`;
    return 'No models yet: put an archive at MODEL/1/model.pt in a repository, and it is loaded within seconds.';
  }

  filter.addEventListener('input', draw);
  more.addEventListener('click', () => {
    most = MOST;
    draw();
    // The button is gone: on with what it has brought.
    table.querySelectorAll('a')[FEW]?.focus();
  });
  return {
    /**
     * @param {Model[]} now
     * @param {number} uptime in seconds
     */
    show(now, uptime) {
      last = now;
      rates.note(uptime, new Map(now.map((model) => [model.name, model.answered + model.failed])));
      draw();
    },
  };
}
