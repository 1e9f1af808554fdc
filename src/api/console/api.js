// What the page asks the server.

/**
 * Numbers of versions are texts: they may have 64 bits.
 * @typedef {{answered: number, failed: number, late: number, error_rate: number, p50_seconds: number, p99_seconds: number,
 *   compute_p50_seconds: number, compute_p99_seconds: number}} Side
 * @typedef {{state: string, strategy: string, live_version: string, version: string, percent: number, step: number,
 *   steps: number[], since: string, ended: string | null, verdict: string, live: Side, candidate: Side, fallbacks: number,
 *   compared: number, different: number, checks: {name: string, evidence: number, text: string}[]}} Rollout
 * @typedef {{name: string, state: string, live_version: string | null, live_since: string | null,
 *   previous_version: string | null, loaded: {version: string, sha256: string, bytes: number}[],
 *   labels: Record<string, string>, generation: number, sha256: string | null, bytes: number | null, resident_bytes: number,
 *   load: string, last_error: string | null, answered: number, failed: number, breaker_open: boolean,
 *   hour: Hour | null, rollout: Rollout | null}} Model
 * @typedef {{answered: number, failed: number, p50_seconds: number | null, p99_seconds: number | null}} Moment
 * @typedef {{reason: string, count: number}} Reason
 * @typedef {Moment & {reasons: Reason[]}} Hour
 * @typedef {{answered: number[], failed: number[], p50_seconds: (number | null)[], p99_seconds: (number | null)[],
 *   whole: Moment, reasons: Reason[]}} Curve
 * @typedef {{lane: string, waiting_admission: number, waiting_scheduler: number, in_flight: number, minute: Curve,
 *   hour: Curve}} Lane
 * @typedef {{level: 'bad' | 'warn', model: string | null, text: string}} Trouble
 * @typedef {{lanes: Lane[],
 *   executors: {healthy: number, busy_seconds: number[], wire_seconds: number, batches: number},
 *   tenants: {tenant: string, compute_seconds: number}[],
 *   pressure: {level: number, in_flight_bytes: number, ratios: {resource: string, ratio: number}[]},
 *   memory: {budget_bytes: number, used_bytes: number, models: number, thrashing: boolean}}} Load
 * @typedef {{model: string, at: string, change: string, asker: string | null, version: string | null,
 *   previous_version: string | null, live_version: string | null, generation: number, sha256: string | null,
 *   phases: {phase: string, seconds: number}[], rested_seconds: number, total_seconds: number, reason: string | null,
 *   error: string | null}} Change
 * @typedef {{name: string, version: string, title: string, host: string, grpc_addr: string, http_addr: string,
 *   status: string, uptime_seconds: number, admin: boolean}} Server
 * @typedef {{server: Server, load: Load | null, troubles: Trouble[], models: Model[], changes: Change[]}} Overview
 * @typedef {{name: string, datatype: string | null, shape: number[] | null, optional: boolean, script_type: string,
 *   labels: string[]}} Tensor
 * @typedef {{inputs: Tensor[], outputs: Tensor[]}} Signature
 * @typedef {{version: string, state: string, is_previous: boolean, labels: string[], sha256: string | null,
 *   bytes: number | null}} Version
 * @typedef {Model & {description: string, signature: Signature | null, max_batch: number | null, torch_version: string | null,
 *   decisions: {version: string | null, what: string, text: string}[], weights_sha256: string | null, versions: Version[],
 *   steps: {model: string, version: string, takes: string[], makes: string[]}[],
 *   profile: {row_bytes: number, rows: number, mean_seconds: number, deviation_seconds: number, passes: number}[],
 *   changes: Change[]}} Details
 */

/** Longest wait for what is only shown, in milliseconds. */
const PATIENCE = 5000;

/** What went wrong, in one line for the reader. */
export class Refusal extends Error {
  /**
   * @param {string} message
   * @param {string} [reason] the server's name of it
   */
  constructor(message, reason = '') {
    super(message);
    this.reason = reason;
  }
}

/**
 * Asks, and reads the answer as JSON.
 * @param {string} path
 * @param {RequestInit} [request]
 * @returns {Promise<{answer: any, headers: Headers}>}
 */
async function ask(path, request = {}) {
  let response;
  let text;
  try {
    response = await fetch(path, { cache: 'no-store', ...request });
    text = await response.text();
  } catch (error) {
    const late = error instanceof DOMException && error.name === 'TimeoutError';
    throw new Refusal(late ? 'The server does not answer.' : 'The server cannot be reached.');
  }
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Refusal(`The server answered ${response.status} without saying why.`);
  }
  if (!response.ok) throw new Refusal(answer.error ?? `The server answered ${response.status}.`, response.headers.get('torchlane-reason'));
  return { answer, headers: response.headers };
}

/** @returns {Promise<Overview>} */
export async function overview() {
  return (await ask('console/state', { signal: AbortSignal.timeout(PATIENCE) })).answer;
}

/**
 * @param {string} model
 * @returns {Promise<Details>}
 */
export async function details(model) {
  const path = `console/models/${encodeURIComponent(model)}`;
  return (await ask(path, { signal: AbortSignal.timeout(PATIENCE) })).answer;
}

/** @typedef {'reload' | 'rollback' | 'unload' | 'rollout' | 'promote' | 'abort'} Kind of a change */

/**
 * Changes a model, where that is allowed.
 * @param {string} model
 * @param {Kind} kind
 * @param {{version?: string, percent?: number}} wish
 * @returns {Promise<{previous_version: string | null, live_version: string | null, new_version: string | null}>}
 */
export async function change(model, kind, wish) {
  const path = `console/models/${encodeURIComponent(model)}/${kind}`;
  const headers = { 'content-type': 'application/json', 'x-torchlane-console': '1' };
  return (await ask(path, { method: 'POST', headers, body: JSON.stringify(wish) })).answer;
}

/**
 * Brings a model into memory, as its next request would.
 * @param {string} model
 */
export async function bring(model) {
  await ask(`v2/models/${encodeURIComponent(model)}`);
}

/**
 * Where requests for a model go.
 * @param {string} model
 * @param {string} version empty: the live one
 */
export function inferPath(model, version) {
  const of = version ? `/versions/${encodeURIComponent(version)}` : '';
  return `v2/models/${encodeURIComponent(model)}${of}/infer`;
}

/**
 * Sends a request to a model. Times are in seconds, the round trip by the page's clock and the others by the server's.
 * @param {string} path
 * @param {string} body
 * @param {Record<string, string>} headers
 * @returns {Promise<{answer: any, roundTrip: number, timing: Record<string, {seconds: number | null, text: string}>}>}
 */
export async function infer(path, body, headers) {
  const began = performance.now();
  const { answer, headers: told } = await ask(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body,
  });
  const roundTrip = (performance.now() - began) / 1000;
  return { answer, roundTrip, timing: serverTiming(told.get('server-timing') ?? '') };
}

/**
 * Reads a `Server-Timing` header as this server writes it.
 * @param {string} header
 */
function serverTiming(header) {
  /** @type {Record<string, {seconds: number | null, text: string}>} */
  const timing = {};
  for (const entry of header.split(',')) {
    const [name, ...parameters] = entry.trim().split(';');
    const of = new Map(parameters.map((parameter) => /** @type {[string, string]} */ (parameter.split('='))));
    const millis = Number(of.get('dur') ?? NaN);
    const seconds = Number.isNaN(millis) ? null : millis / 1000;
    if (name) timing[name] = { seconds, text: (of.get('desc') ?? '').replaceAll('"', '') };
  }
  return timing;
}
