// The four lanes: what waits, what runs, how much and how fast.

import { chart } from './chart.js';
import { el, setAttribute, setText } from './dom.js';
import { count, NOTHING, rate, reasons, seconds, tick, tickSeconds } from './format.js';

/** @typedef {import('./api.js').Lane} Lane */

const LANES = ['CRITICAL', 'HIGH', 'NORMAL', 'LOW'];

/** @typedef {'minute' | 'hour'} Span what the curves show */

/**
 * Of each span the name of one step, and its seconds.
 * @type {Record<Span, ['s' | 'min', number]>}
 */
const STEPS = { minute: ['s', 1], hour: ['min', 60] };

/** Seconds that "now" is taken over: one alone says too little of a lane with few requests. */
const NOW = 5;

/**
 * So many a second, lately.
 * @param {number[]} perSecond the latest last
 */
export function lately(perSecond) {
  const last = perSecond.slice(-NOW);
  return last.length ? last.reduce((sum, number) => sum + number, 0) / last.length : null;
}

/** @param {string} lane */
function card(lane) {
  const title = `lane-${lane.toLowerCase()}`;
  /** A number with its name, and the colour of its curve. */
  const number = (/** @type {string} */ label, /** @type {string | null} */ curve = null) => {
    const value = el('dd', {}, NOTHING);
    return { value, node: el('div', {}, el('dt', { 'data-curve': curve }, label), value) };
  };
  const [throughput, failed] = [number('answered/s', 'line'), number('failed/s', 'bad')];
  const [p50, p99] = [number('p50', 'line'), number('p99', 'faint')];
  const [waiting, inFlight] = [number('waiting'), number('in flight')];
  const why = el('p', { class: 'reasons' });
  const flow = chart(`${lane}, answers a second`, (value) => `${tick(value)}/s`);
  const latency = chart(`${lane}, latency`, tickSeconds);
  const node = el(
    'article',
    { class: 'panel lane', 'data-lane': lane, 'aria-labelledby': title },
    el('h3', { id: title }, lane),
    el('dl', { class: 'numbers' }, waiting.node, inFlight.node),
    el('div', { class: 'curve' }, el('dl', { class: 'numbers' }, throughput.node, failed.node), flow.node),
    el('div', { class: 'curve' }, el('dl', { class: 'numbers' }, p50.node, p99.node), latency.node),
    why,
  );
  return {
    node,
    /**
     * @param {Lane} now
     * @param {Span} span
     */
    show({ waiting_admission, waiting_scheduler, in_flight, minute, ...rest }, span) {
      const curve = span === 'hour' ? rest.hour : minute;
      const [step, size] = STEPS[span];
      const perSecond = curve.answered.map((number) => number / size);
      setText(waiting.value, count(waiting_admission + waiting_scheduler));
      setAttribute(waiting.node, 'title', `${waiting_admission} to be let in, ${waiting_scheduler} for an executor`);
      setText(inFlight.value, count(in_flight));
      const [answered, refused] = [lately(minute.answered), lately(minute.failed)];
      setText(throughput.value, rate(answered));
      setText(failed.value, rate(refused));
      setAttribute(failed.node, 'data-tone', refused ? 'bad' : null);
      setText(p50.value, seconds(curve.whole.p50_seconds));
      setText(p99.value, seconds(curve.whole.p99_seconds));
      setText(why, curve.reasons.length > 0 ? `${reasons(curve.reasons)} in the last ${span}` : '');
      flow.draw(
        [
          { kind: 'area', values: perSecond },
          { kind: 'line', values: perSecond },
          { kind: 'bad', values: gaps(curve.failed.map((number) => number / size)) },
        ],
        `${rate(answered)} now, ${rate(Math.max(0, ...perSecond))} at most in the last ${span}`,
        step,
      );
      latency.draw(
        [
          { kind: 'line', values: curve.p50_seconds },
          { kind: 'faint', values: curve.p99_seconds },
        ],
        `p50 ${seconds(curve.whole.p50_seconds)}, p99 ${seconds(curve.whole.p99_seconds)} in the last ${span}`,
        step,
      );
    },
  };
}

/**
 * Nothing is drawn where nothing went wrong.
 * @param {number[]} failed
 */
function gaps(failed) {
  return failed.map((number, index) => (number || failed[index - 1] || failed[index + 1] ? number : null));
}

/**
 * Puts a card for each lane into `container`; the buttons in `choice` say what the curves show.
 * @param {Element} container
 * @param {Element} choice
 */
export function lanes(container, choice) {
  const cards = new Map(LANES.map((lane) => [lane, card(lane)]));
  container.append(...[...cards.values()].map(({ node }) => node));
  const buttons = [...choice.querySelectorAll('button')];
  /** @type {Span} */
  let span = 'minute';
  /** @type {Lane[]} */
  let last = [];
  const draw = () => last.forEach((lane) => cards.get(lane.lane)?.show(lane, span));
  for (const button of buttons) {
    button.addEventListener('click', () => {
      span = button.dataset.span === 'hour' ? 'hour' : 'minute';
      buttons.forEach((one) => setAttribute(one, 'aria-pressed', String(one === button)));
      draw();
    });
  }
  return {
    /** @param {Lane[]} now */
    show(now) {
      last = now;
      draw();
    },
  };
}
