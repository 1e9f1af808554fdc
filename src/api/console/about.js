// What is known of a model: what it takes and returns, what it is made of, its versions, how long its passes take.

import { el, redraw, setText } from './dom.js';
import { bytes, count, percent, seconds, shape, tens, when, words } from './format.js';
import { link } from './link.js';
import { digest, trouble } from './models.js';
import { panel as rolloutPanel } from './rollout.js';

/** @typedef {import('./api.js').Details} Details */
/** @typedef {import('./api.js').Tensor} Tensor */

/** Sizes of passes that are listed: those that ran most. */
const MOST_POINTS = 12;

/**
 * A part with its title.
 * @param {string} title
 */
function part(title) {
  const body = el('div', {});
  const node = el('section', {}, el('h3', {}, title), body);
  return { node, body };
}

/**
 * A table that may be scrolled sideways where it does not fit.
 * @param {string[]} columns those of numbers begin with #; empty ones are told apart by what they say
 * @param {Node[]} rows
 */
function table(columns, rows) {
  const head = columns.map((name) => {
    const isNumber = name.startsWith('#');
    return name ? el('th', { scope: 'col', class: isNumber ? 'number' : null }, name.replace('#', '')) : el('td');
  });
  const made = el('table', { class: 'plain-table' }, el('thead', {}, el('tr', {}, ...head)), el('tbody', {}, ...rows));
  return el('div', { class: 'scrolls' }, made);
}

/** @param {Tensor[]} all */
function tensors(all) {
  if (all.length === 0) return el('p', { class: 'quiet' }, 'Not declared: they are named as they come.');
  const rows = all.map(({ name, datatype, shape: sizes, script_type, optional, labels }) =>
    el(
      'tr',
      {},
      el('th', { scope: 'row' }, el('code', {}, name)),
      el('td', {}, datatype ?? (script_type === 'Tensor' ? 'any' : script_type)),
      el('td', {}, el('code', {}, shape(sizes))),
      el('td', { class: 'quiet' }, [optional ? 'optional' : '', labels.length > 0 ? `${labels.length} labels` : ''].filter(Boolean).join(', ')),
    ),
  );
  return table(['name', 'datatype', 'shape', ''], rows);
}

/** @param {Details} details */
function signature({ signature: of, max_batch, torch_version, steps: all }) {
  if (!of) return [el('p', { class: 'empty' }, 'It is known once a version is in memory.')];
  const facts = [all.length > 0 ? '' : `at most ${max_batch} ${max_batch === 1 ? 'row' : 'rows'} in a pass`, torch_version ? `written by torch ${torch_version}` : ''].filter(Boolean);
  return [el('h4', {}, 'Takes'), tensors(of.inputs), el('h4', {}, 'Returns'), tensors(of.outputs), el('p', { class: 'quiet' }, facts.join(' · '))];
}

/** @param {Details} details */
function decisions({ decisions: all }) {
  return [el('dl', { class: 'decisions' }, ...all.flatMap(({ version, what, text }) => [el('dt', {}, what.replaceAll('_', ' ')), el('dd', {}, version ? `version ${version}: ${text}` : text)]))];
}

/** @param {Details} details */
function steps({ steps: all }) {
  const rows = all.map(({ model, version, takes, makes }) =>
    el(
      'tr',
      {},
      el('th', { scope: 'row' }, el('a', { href: link(model) }, model)),
      el('td', {}, version || 'live'),
      el('td', {}, el('code', {}, takes.join(', '))),
      el('td', {}, el('code', {}, makes.join(', '))),
    ),
  );
  return [table(['model', 'version', 'takes', 'makes'], rows)];
}

/** @param {Details} details */
function versions({ versions: all }) {
  if (all.length === 0) return [el('p', { class: 'empty' }, 'None on disk: put an archive at MODEL/1/model.pt.')];
  const rows = all.map((version) =>
    el(
      'tr',
      {},
      el('th', { scope: 'row' }, version.version),
      el('td', {}, el('span', { class: 'pill', 'data-tone': version.state === 'live' ? 'good' : 'quiet' }, words(version.state))),
      el('td', {}, version.sha256 ? digest(version.sha256) : ''),
      el('td', { class: 'number' }, version.bytes === null ? '' : bytes(version.bytes)),
      el('td', { class: 'quiet' }, [...version.labels, version.is_previous ? 'to roll back to' : ''].filter(Boolean).join(', ')),
    ),
  );
  return [table(['version', 'state', 'digest', '#size', ''], rows)];
}

/** @param {Details} details */
function hour({ hour: of }) {
  if (!of) return [el('p', { class: 'empty' }, 'No request has come.')];
  const all = of.answered + of.failed;
  const summary = `${count(of.answered)} answered, p50 ${seconds(of.p50_seconds)}, p99 ${seconds(of.p99_seconds)}`;
  const rows = of.reasons.map(({ reason, count: number }) =>
    el(
      'tr',
      {},
      el('th', { scope: 'row' }, el('code', {}, reason)),
      el('td', { class: 'number' }, count(number)),
      el('td', { class: 'number' }, percent(number / all)),
    ),
  );
  const failures = rows.length > 0 ? table(['failed because', '#requests', '#of all'], rows) : el('p', { class: 'quiet' }, 'None failed.');
  return [el('p', {}, summary), failures];
}

/** @param {Details} details */
function profile({ profile: points }) {
  if (points.length === 0) return [el('p', { class: 'empty' }, 'No pass has run yet.')];
  const ranked = points.toSorted((a, b) => b.passes - a.passes).slice(0, MOST_POINTS);
  const rows = ranked.toSorted((a, b) => a.row_bytes - b.row_bytes || a.rows - b.rows).map((point) =>
    el(
      'tr',
      {},
      el('td', { class: 'number' }, count(point.rows)),
      el('td', { class: 'number' }, bytes(point.row_bytes)),
      el('td', { class: 'number' }, `${seconds(point.mean_seconds)} ± ${seconds(point.deviation_seconds)}`),
      el('td', { class: 'number' }, seconds(point.mean_seconds / point.rows)),
      el('td', { class: 'number' }, count(point.passes)),
    ),
  );
  return [table(['#rows', '#a row from', '#a pass takes', '#a row takes', '#passes'], rows)];
}

/**
 * Fills a panel with it.
 * @param {Element} into
 */
export function about(into) {
  const parts = {
    rollout: part('Rollout'),
    hour: part('Last hour'),
    steps: part('Steps'),
    decisions: part('Decided by torchlane'),
    signature: part('Signature'),
    versions: part('Versions'),
    profile: part('What passes take'),
  };
  const problem = el('p', { class: 'trouble' });
  const [description, facts] = [el('p', { class: 'about' }), el('p', { class: 'quiet' })];
  into.append(problem, description, facts, ...Object.values(parts).map(({ node }) => node));
  return {
    /** @param {Details} details */
    show(details) {
      const { live_version: live, live_since: since, generation, load, resident_bytes } = details;
      const isEnsemble = details.steps.length > 0;
      setText(problem, trouble(details));
      setText(description, details.description);
      const serves = live ? `version ${live} since ${when(since ?? '')}` : 'no version is live';
      const memory = isEnsemble ? 'made of other models' : `${load}, ${bytes(resident_bytes)} in memory`;
      setText(facts, [serves, `generation ${generation}`, memory].join(' · '));
      parts.rollout.node.hidden = !details.rollout;
      redraw(parts.rollout.body, { of: details.rollout, tick: tens() }, () => (details.rollout ? rolloutPanel(details.rollout) : []));
      redraw(parts.hour.body, details.hour, () => hour(details));
      parts.steps.node.hidden = !isEnsemble;
      redraw(parts.steps.body, details.steps, () => steps(details));
      parts.decisions.node.hidden = details.decisions.length === 0;
      redraw(parts.decisions.body, details.decisions, () => decisions(details));
      const { signature: of, max_batch, torch_version } = details;
      redraw(parts.signature.body, { of, max_batch, torch_version }, () => signature(details));
      parts.versions.node.hidden = isEnsemble;
      redraw(parts.versions.body, details.versions, () => versions(details));
      parts.profile.node.hidden = isEnsemble;
      redraw(parts.profile.body, details.profile, () => profile(details));
    },
  };
}
