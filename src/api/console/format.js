// Numbers for people. What is not known is a dash as wide as nothing else.

export const NOTHING = '–';

/** @type {[string, number][]} */
const UNITS = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
/** @type {[Intl.RelativeTimeFormatUnit, number][]} */
const AGES = [['day', 86400], ['hour', 3600], ['minute', 60]];

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'short' });

/**
 * Three digits that count.
 * @param {number} number
 */
function digits(number) {
  if (number >= 100) return whole.format(number);
  return number >= 10 ? number.toFixed(1) : number.toFixed(2);
}

/** @param {number} number */
export function count(number) {
  return whole.format(number);
}

/**
 * So many a second.
 * @param {number | null} number
 */
export function rate(number) {
  if (number === null) return NOTHING;
  if (number === 0) return '0';
  return number >= 10 ? whole.format(number) : number.toFixed(1);
}

/**
 * A number on an axis, as short as it can be.
 * @param {number} number
 */
export function tick(number) {
  return compact.format(number);
}

/**
 * A latency or the time of a phase.
 * @param {number | null | undefined} time in seconds
 */
export function seconds(time) {
  if (time === null || time === undefined) return NOTHING;
  if (time < 0.001) return `${whole.format(time * 1e6)} µs`;
  if (time < 1) return `${digits(time * 1e3)} ms`;
  return time < 60 ? `${digits(time)} s` : long(time);
}

/**
 * A time on an axis.
 * @param {number} time in seconds
 */
export function tickSeconds(time) {
  return seconds(time).replace(/\.0+ /, ' ');
}

/**
 * A time of minutes and more, in its two largest units.
 * @param {number} time in seconds
 */
export function long(time) {
  const first = UNITS.findIndex(([, size]) => time >= size);
  if (first < 0) return '0 s';
  let rest = Math.floor(time);
  const parts = UNITS.slice(first, first + 2).map(([unit, size]) => {
    const number = Math.floor(rest / size);
    rest %= size;
    return `${number} ${unit}`;
  });
  return parts.join(' ');
}

/** @param {number | null | undefined} size */
export function bytes(size) {
  if (size === null || size === undefined) return NOTHING;
  if (size < 1024) return `${size} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  let number = size / 1024;
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${digits(number)} ${units[unit]}`;
}

/**
 * A part of one in percent.
 * @param {number | null} part
 */
export function percent(part) {
  if (part === null) return NOTHING;
  const number = part * 100;
  return `${number > 0 && number < 9.95 ? number.toFixed(1) : whole.format(number)} %`;
}

/**
 * The beginning of a digest: enough to tell it from others.
 * @param {string | null} sha256
 */
export function short(sha256) {
  return sha256 ? sha256.slice(0, 8) : NOTHING;
}

/**
 * How long ago.
 * @param {string} at RFC 3339
 */
export function ago(at) {
  const since = (Date.parse(at) - Date.now()) / 1000;
  for (const [unit, size] of AGES) {
    if (Math.abs(since) >= size) return relative.format(Math.round(since / size), unit);
  }
  // In steps of ten seconds, as often as it is told.
  return since > -10 ? 'now' : relative.format(Math.ceil(since / 10) * 10, 'second');
}

/** Counts the ten seconds: what says how long ago something was is told anew when this changes. */
export function tens() {
  return Math.floor(Date.now() / 10_000);
}

/**
 * A point in time, in UTC as everywhere.
 * @param {string} at RFC 3339
 */
export function when(at) {
  return `${at.slice(0, 19).replace('T', ' ')}Z`;
}

/**
 * Failures by reason, the most frequent first.
 * @param {{reason: string, count: number}[]} all
 */
export function reasons(all) {
  return all.map(({ reason, count: number }) => `${count(number)} ${reason}`).join(' · ');
}

/**
 * `1 problem`, `2 problems`.
 * @param {number} number
 * @param {string} what
 */
export function counted(number, what) {
  return `${count(number)} ${what}${number === 1 ? '' : 's'}`;
}

/**
 * A shape as models have it: any size is a star.
 * @param {number[] | null} sizes
 */
export function shape(sizes) {
  if (!sizes) return 'any shape';
  return `[${sizes.map((size) => (size < 0 ? '∗' : String(size))).join(', ')}]`;
}

/**
 * The name of a state or a change for people.
 * @param {string} name
 */
export function words(name) {
  return name.replaceAll('_', ' ');
}
