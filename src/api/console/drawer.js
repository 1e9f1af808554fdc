// A model that is opened: all that is known of it, at the side of the page.

import { about } from './about.js';
import { actions } from './actions.js';
import { details as ask } from './api.js';
import { byId, redraw, setAttribute, setText } from './dom.js';
import { tens } from './format.js';
import { history } from './history.js';
import { link } from './link.js';
import { state, tone } from './models.js';
import { trial } from './trial.js';

/** @typedef {import('./api.js').Details} Details */

const TABS = ['overview', 'try', 'history'];

/**
 * @param {() => void} closed the reader has closed it
 */
export function drawer(closed) {
  /** @type {HTMLDialogElement} */
  const dialog = byId('drawer');
  const problem = byId('drawer-problem');
  const known = about(byId('panel-overview'));
  const changing = actions(byId('drawer-actions'), byId('drawer-why'), refresh);
  const trying = trial(() => void refresh());
  let model = '';

  /** @param {Details} details */
  function show(details) {
    setAttribute(dialog, 'data-waits', null);
    setText(byId('drawer-state'), state(details));
    setAttribute(byId('drawer-state'), 'data-tone', tone(details));
    known.show(details);
    redraw(byId('panel-history'), { of: details.changes, tick: tens() }, () => history(details.changes));
    trying.show(details);
    changing.show(details);
  }

  async function refresh() {
    if (!dialog.open) return;
    const wanted = model;
    let details;
    try {
      details = await ask(wanted);
    } catch (error) {
      if (wanted === model) setText(problem, /** @type {Error} */ (error).message);
      return;
    }
    setText(problem, '');
    if (dialog.open && wanted === model) show(details);
  }

  /** @param {string} tab */
  function choose(tab) {
    const chosen = TABS.includes(tab) ? tab : TABS[0];
    for (const name of TABS) {
      const button = byId(`tab-${name}`);
      setAttribute(button, 'aria-selected', String(name === chosen));
      // One stop for the tab key; arrows go from tab to tab.
      button.tabIndex = name === chosen ? 0 : -1;
      byId(`panel-${name}`).hidden = name !== chosen;
    }
  }

  /** @param {string} tab */
  function goTo(tab) {
    window.history.replaceState(null, '', link(model, tab));
    choose(tab);
  }

  TABS.forEach((name, index) => {
    const button = byId(`tab-${name}`);
    button.addEventListener('click', () => goTo(name));
    button.addEventListener('keydown', (event) => {
      const to = { ArrowRight: index + 1, ArrowLeft: index - 1 + TABS.length, Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = TABS[to % TABS.length];
      goTo(next);
      byId(`tab-${next}`).focus();
    });
  });
  byId('drawer-close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    // It is told a moment later: another model may have been asked for, or be open already.
    const [, , named] = location.hash.split('/');
    if (!dialog.open && named === encodeURIComponent(model)) closed();
  });
  dialog.addEventListener('pointerdown', (event) => {
    const box = dialog.getBoundingClientRect();
    // What lies beside it belongs to it too, as its backdrop.
    if (event.target === dialog && event.clientX < box.left) dialog.close();
  });

  return {
    /**
     * @param {string} name
     * @param {string} tab
     */
    open(name, tab) {
      if (name !== model) {
        model = name;
        setText(byId('drawer-title'), name);
        setText(byId('drawer-state'), '');
        setText(problem, '');
        setAttribute(dialog, 'data-waits', '');
      }
      choose(tab);
      if (!dialog.open) {
        dialog.showModal();
        byId('drawer-title').focus();
      }
      void refresh();
    },
    close() {
      if (dialog.open) dialog.close();
    },
    refresh,
    allow: changing.allow,
  };
}
