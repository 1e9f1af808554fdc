// What is wrong, in one look: the pill at the top, and a list of what to look at.

import { byId, el, redraw, setAttribute, setText } from './dom.js';
import { count, counted, words } from './format.js';
import { link } from './link.js';

/** @typedef {import('./api.js').Server} Server */
/** @typedef {import('./api.js').Trouble} Trouble */

/** How many are listed. */
const MOST = 6;

const TONES = new Map([['ready', 'good'], ['not_ready', 'warn'], ['draining', 'warn'], ['broken', 'bad']]);

/**
 * The state of the server in a word or two, and its tone. A server with a failed model is not simply ready.
 * @param {Server} server
 * @param {Trouble[]} troubles
 */
export function headline({ status }, troubles) {
  if (status !== 'ready' || troubles.length === 0) return { text: words(status), tone: TONES.get(status) ?? 'quiet' };
  const bad = troubles.filter(({ level }) => level === 'bad').length;
  return bad > 0
    ? { text: counted(bad, 'problem'), tone: 'bad' }
    : { text: counted(troubles.length, 'warning'), tone: 'warn' };
}

/** @param {Trouble} trouble */
function entry({ level, model, text }) {
  return el(
    'li',
    { 'data-tone': level },
    model ? el('a', { class: 'of', href: link(model) }, model) : el('span', { class: 'of' }, 'server'),
    el('span', {}, text),
  );
}

/** @param {Trouble[]} troubles the worst first */
export function showTroubles(troubles) {
  byId('troubles').hidden = troubles.length === 0;
  redraw(byId('troubles-list'), troubles, () => {
    const rest = troubles.length - MOST;
    const list = el('ul', {}, ...troubles.slice(0, MOST).map(entry));
    return rest > 0 ? [list, el('p', { class: 'quiet small' }, `and ${count(rest)} more: see the models below`)] : [list];
  });
}

/**
 * Which server this is.
 * @param {Server} server
 */
export function showIdentity({ title, host, grpc_addr, http_addr, version }) {
  setText(byId('title'), title || 'torchlane');
  setText(byId('identity'), `${host} · gRPC ${grpc_addr} · HTTP ${http_addr} · torchlane ${version}`);
}

/**
 * @param {Server} server
 * @param {Trouble[]} troubles
 */
export function showStatus(server, troubles) {
  const { text, tone } = headline(server, troubles);
  setText(byId('status'), text);
  setAttribute(byId('status'), 'data-tone', tone);
  const name = server.title || server.host;
  document.title = tone === 'good' ? `${name} · torchlane` : `${text} · ${name} · torchlane`;
}
