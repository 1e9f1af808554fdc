// An answer: scores as bars, tensors as numbers, and where the time went.

import { bar } from './bar.js';
import { el, keyed, redraw, setText } from './dom.js';
import { count, percent, seconds, shape } from './format.js';

/** @typedef {import('./api.js').Signature} Signature */
/** @typedef {{name: string, datatype: string, shape: number[], data?: any[]}} Output */
/** @typedef {{key: string, label: string, part: number, text: string, isBest: boolean}} Score */
/** @typedef {{of: string, ranked: Score[]}} Scores */

/** A row of more elements is no list of classes that could be looked at. */
const MOST_CLASSES = 40;
/** Elements of a tensor that are written out. */
const WRITTEN = 256;

/** What times of the server are called, in their order. */
const TIMES = new Map([['queue', 'let in after'], ['batch-wait', 'then waited'], ['compute', 'pass']]);

/**
 * The first row of the first output that looks like scores of classes.
 * @param {Output[]} outputs
 * @param {Signature | null} signature
 * @returns {Scores | null}
 */
function scores(outputs, signature) {
  for (const output of outputs) {
    const classes = output.shape.at(-1) ?? 0;
    const labels = signature?.outputs.find(({ name }) => name === output.name)?.labels ?? [];
    const isNamed = labels.length === classes && classes > 0;
    const couldBe = output.datatype.startsWith('FP') && classes > 1 && classes <= MOST_CLASSES;
    const row = (output.data?.slice(0, classes) ?? []).filter((value) => typeof value === 'number');
    if (couldBe && (isNamed || output.shape.length === 2) && row.length === classes) {
      const rows = output.shape.slice(0, -1).reduce((product, size) => product * size, 1);
      return { of: rows > 1 ? `${output.name}, row 1 of ${count(rows)}` : output.name, ranked: ranked(row, labels) };
    }
  }
  return null;
}

/**
 * @param {number[]} row
 * @param {string[]} labels
 */
function ranked(row, labels) {
  const [least, most] = [Math.min(...row), Math.max(...row)];
  const sum = row.reduce((all, value) => all + value, 0);
  const areParts = least >= 0 && Math.abs(sum - 1) < 0.01;
  return row.map((value, index) => ({
    key: String(index),
    label: labels[index] ?? String(index),
    part: areParts ? value : (value - least) / (most - least || 1),
    text: areParts ? percent(value) : number(value),
    isBest: value === most,
  }));
}

/** @param {unknown} value */
function number(value) {
  return typeof value === 'number' && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value);
}

/**
 * @param {Output} output
 * @returns {HTMLElement}
 */
function tensor({ name, datatype, shape: sizes, data = [] }) {
  const across = Math.max(1, sizes.at(-1) ?? 1);
  const lines = [];
  for (let at = 0; at < Math.min(data.length, WRITTEN); at += across) {
    lines.push(data.slice(at, Math.min(at + across, WRITTEN)).map(number).join(', '));
  }
  if (data.length > WRITTEN) lines.push(`… and ${count(data.length - WRITTEN)} more`);
  const head = el('summary', {}, el('code', {}, name), el('span', { class: 'quiet' }, ` ${datatype} ${shape(sizes)}`));
  return el('details', { open: true }, head, el('pre', { tabindex: 0 }, lines.join('\n')));
}

/**
 * Where answers are shown. What is new takes the place of what was without moving the rest.
 * @param {string} invitation what is said as long as there is none
 */
export function answers(invitation) {
  const line = el('p', { class: 'timing quiet', role: 'status' }, invitation);
  const [best, part, of] = [el('strong'), el('span'), el('span', { class: 'quiet' })];
  const verdict = el('p', { class: 'found', hidden: true, 'aria-live': 'polite' }, best, part, of);
  const bars = el('div', { class: 'scores', role: 'group', 'aria-label': 'Scores' });
  const tensors = el('div', { class: 'tensors' });
  const node = el('div', { class: 'answer' }, verdict, bars, line, tensors);

  /** @param {Score} score */
  function listed({ label }) {
    const made = bar(label);
    return {
      node: made.node,
      update(/** @type {Score} */ score) {
        made.rename(score.label);
        made.show(score.part, score.text, score.isBest ? 'strong' : '');
      },
    };
  }

  /** @param {Scores | null} found */
  function showScores(found) {
    keyed(bars, found?.ranked ?? [], ({ key }) => key, listed);
    const first = found?.ranked.find(({ isBest }) => isBest);
    verdict.hidden = !first;
    setText(best, first?.label ?? '');
    setText(part, first?.text ?? '');
    setText(of, found?.of ?? '');
  }

  return {
    node,
    /**
     * @param {Awaited<ReturnType<typeof import('./api.js').infer>>} told
     * @param {Signature | null} signature
     */
    show({ answer, roundTrip, timing }, signature) {
      /** @type {Output[]} */
      const outputs = answer.outputs ?? [];
      const times = [...TIMES].filter(([name]) => timing[name]).map(([name, text]) => `${text} ${seconds(timing[name].seconds)}`);
      if (timing.batch) times.push(`${timing.batch.text} in the batch`);
      if (timing.cache) times.push('from the response cache');
      setText(line, [`version ${answer.model_version}`, `${seconds(roundTrip)} there and back`, ...times].join(' · '));
      line.removeAttribute('data-tone');
      node.removeAttribute('data-stale');
      showScores(scores(outputs, signature));
      redraw(tensors, outputs, (all) => all.map(tensor));
      node.setAttribute('data-answered', '');
    },
    /** @param {string} text */
    fail(text) {
      setText(line, text);
      line.setAttribute('data-tone', 'bad');
      node.setAttribute('data-stale', '');
    },
    clear() {
      setText(line, invitation);
      line.removeAttribute('data-tone');
      node.removeAttribute('data-stale');
      showScores(null);
      redraw(tensors, [], () => []);
      node.removeAttribute('data-answered');
    },
  };
}
