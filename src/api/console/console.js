// The page: asks the server how it is each second, and shows it.

import { overview } from './api.js';
import { byId, redraw, setAttribute, setText } from './dom.js';
import { drawer } from './drawer.js';
import { count, long, NOTHING, rate, tens } from './format.js';
import { latest } from './history.js';
import { lanes, lately } from './lanes.js';
import { models } from './models.js';
import { tell } from './notice.js';
import { PRESSURE, resources } from './resources.js';
import { showIdentity, showStatus, showTroubles } from './troubles.js';

/** @typedef {import('./api.js').Overview} Overview */

/** Between two looks, in milliseconds. */
const EACH = 1000;
/** While the server does not answer. */
const PATIENTLY = 2000;

const show = {
  lanes: lanes(byId('lanes'), byId('span')),
  models: models(),
  resources: resources({
    executors: byId('executors'),
    executorsNote: byId('executors-note'),
    tenants: byId('tenants'),
    tenantsNote: byId('tenants-note'),
    memory: byId('memory'),
    memoryNote: byId('memory-note'),
  }),
};

const opened = drawer(() => {
  if (location.hash) history.pushState(null, '', location.pathname + location.search);
});

/** @param {Overview} now */
function draw({ server, load, troubles, models: all, changes }) {
  showIdentity(server);
  showStatus(server, troubles);
  showTroubles(troubles);
  setText(byId('uptime'), long(server.uptime_seconds));
  setText(byId('model-count'), count(all.length));
  const perSecond = load?.lanes.map(({ minute }) => (lately(minute.answered) ?? 0) + (lately(minute.failed) ?? 0));
  setText(byId('request-rate'), perSecond ? rate(perSecond.reduce((sum, one) => sum + one, 0)) : NOTHING);
  setText(byId('pressure'), load ? (PRESSURE[load.pressure.level] ?? NOTHING) : NOTHING);
  setAttribute(byId('pressure'), 'data-tone', load && load.pressure.level > 0 ? 'warn' : null);
  byId('read-only').hidden = server.admin;
  if (load) {
    show.lanes.show(load.lanes);
    show.resources.show(load, server.uptime_seconds);
  }
  show.models.show(all, server.uptime_seconds);
  redraw(byId('changes'), { changes, tick: tens() }, () => latest(changes));
  opened.allow(server.admin);
}

let isAway = false;

/** The server answers no more: what is shown is from before. */
function away(/** @type {Error} */ { message }) {
  setText(byId('status'), 'no answer');
  setAttribute(byId('status'), 'data-tone', 'bad');
  document.title = 'no answer · torchlane';
  document.documentElement.setAttribute('data-away', '');
  if (!isAway) tell(`${message} What is shown is from before; trying again.`, 'bad', { stays: true });
  isAway = true;
}

/** It answers again. */
function back() {
  document.documentElement.removeAttribute('data-away');
  tell('The server answers again.');
  isAway = false;
}

/** Looks once; says how long to wait until the next look. */
async function look() {
  let now;
  try {
    now = await overview();
  } catch (error) {
    away(/** @type {Error} */ (error));
    return PATIENTLY;
  }
  if (isAway) back();
  draw(now);
  await opened.refresh();
  document.documentElement.setAttribute('data-live', '');
  return EACH;
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** Looks again and again, as long as somebody can see it. */
async function watch() {
  clearTimeout(timer);
  if (document.hidden) return;
  const wait = await look();
  clearTimeout(timer);
  timer = setTimeout(watch, wait);
}

/** What the address says: a model, and which of its tabs. */
function route() {
  const [, kind, name, tab] = location.hash.split('/');
  if (kind === 'models' && name) opened.open(decodeURIComponent(name), tab ?? '');
  else opened.close();
}

document.addEventListener('visibilitychange', watch);
window.addEventListener('hashchange', route);
window.addEventListener('popstate', route);
route();
void watch();
