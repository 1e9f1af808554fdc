// What the reader may do to a model: buttons, each with a question before it.

import { change } from './api.js';
import { confirmed } from './confirm.js';
import { el, setAttribute, setText } from './dom.js';
import { NOTHING } from './format.js';
import { tell } from './notice.js';

/** @typedef {import('./api.js').Details} Details */
/** @typedef {import('./api.js').Kind} Kind */
/** @typedef {import('./confirm.js').Field} Field */

/**
 * A kind of change: its button, when that is there, why it cannot be pressed (empty: it can), and its question.
 * @typedef {{action: string, isThere?: (of: Details) => boolean, obstacle: (of: Details) => string, isRisky?: boolean,
 *   title: (of: Details) => string, text: string, fields?: (of: Details) => Field[]}} Change
 */

/** @param {Details} of */
function isRolling({ rollout }) {
  return rollout?.state === 'running';
}

/**
 * Versions that are not live.
 * @param {Details} of
 */
function others({ versions, live_version: live }) {
  return versions.map(({ version }) => version).filter((version) => version !== live);
}

/** @type {Record<Kind, Change>} */
const CHANGES = {
  reload: {
    action: 'Reload',
    obstacle: () => '',
    title: ({ name }) => `Reload ${name}?`,
    text: 'The version is loaded beside the live one, checked, and swapped in. If that fails, nothing changes.',
    fields: ({ versions }) => [
      { name: 'version', label: 'Version', options: [['', 'as the repository says'], ...versions.map(({ version }) => [version, version])] },
    ],
  },
  rollback: {
    action: 'Roll back',
    obstacle: ({ previous_version: previous }) => (previous === null ? 'no other version was live before' : ''),
    title: ({ name, previous_version: previous }) => `Roll ${name} back to version ${previous}?`,
    text: 'It is loaded again and swapped in. It stays until something newer is put into the repository.',
  },
  rollout: {
    action: 'Roll out',
    isThere: (of) => !isRolling(of),
    obstacle: (of) => {
      if (of.steps.length > 0) return 'an ensemble has no versions of its own';
      if (of.live_version === null) return 'no version is live beside which another could be tried';
      return others(of).length === 0 ? 'the repository has no other version' : '';
    },
    title: ({ name }) => `Roll out a version of ${name}?`,
    text: 'It is loaded beside the live one and answers a share of the callers. It is rolled back by itself when it does worse.',
    fields: (of) => [
      { name: 'version', label: 'Version', options: others(of).map((version) => [version, version]) },
      { name: 'percent', label: 'Callers, %', number: { least: 0.1, most: 100, step: 0.1, value: 10 } },
    ],
  },
  promote: {
    action: 'Promote',
    isThere: isRolling,
    obstacle: () => '',
    title: ({ name, rollout }) => `Promote version ${rollout?.version} of ${name}?`,
    text: 'It goes live for all callers now, whatever is known of it so far.',
  },
  abort: {
    action: 'Abort rollout',
    isThere: isRolling,
    obstacle: () => '',
    title: ({ name, rollout }) => `Take version ${rollout?.version} of ${name} back?`,
    text: 'All callers get the live version. The new one is not tried again before its files change, or a rollout of it is asked for.',
  },
  unload: {
    action: 'Unload',
    obstacle: ({ live_version: live, state }) => (live === null && state !== 'on_demand' ? 'it is not loaded' : ''),
    isRisky: true,
    title: ({ name }) => `Unload ${name}?`,
    text: 'Requests for it are rejected until it is loaded again. Those in flight end.',
  },
};

/**
 * What has come of a change, for the reader.
 * @param {string} model
 * @param {Awaited<ReturnType<typeof change>>} done
 */
function outcome(model, { live_version: live, previous_version: before, new_version: beside }) {
  if (beside) return `${model}: version ${beside} is rolled out beside ${live}.`;
  if (!live) return `${model}: version ${before} is unloaded.`;
  return live === before ? `${model}: version ${live} is live.` : `${model}: version ${live} is live, ${before ?? NOTHING} was before.`;
}

/**
 * Puts the buttons into `bar`, and into `why` what keeps those from being pressed that cannot be.
 * @param {HTMLElement} bar
 * @param {HTMLElement} why
 * @param {() => Promise<void>} changed something may be otherwise now
 */
export function actions(bar, why, changed) {
  /** @type {Details | null} */
  let of = null;
  const buttons = /** @type {[Kind, Change][]} */ (Object.entries(CHANGES)).map(([kind, what]) => ({
    what,
    node: el('button', { type: 'button', 'data-change': kind, class: what.isRisky ? 'risky' : null, click: () => carryOut(kind) }, what.action),
  }));
  bar.append(...buttons.map(({ node }) => node));

  async function carryOut(/** @type {Kind} */ kind) {
    if (!of || bar.hasAttribute('data-busy')) return;
    const { name } = of;
    const { action, title, text, fields, isRisky } = CHANGES[kind];
    const said = await confirmed({ title: title(of), text, action, isRisky, fields: fields?.(of) });
    if (!said) return;
    setAttribute(bar, 'data-busy', '');
    tell(`${action}: under way`, 'good', { stays: true });
    try {
      const { version, percent } = said;
      tell(outcome(name, await change(name, kind, { ...(version && { version }), ...(percent && { percent: Number(percent) }) })));
    } catch (error) {
      tell(/** @type {Error} */ (error).message, 'bad');
    }
    setAttribute(bar, 'data-busy', null);
    await changed();
  }

  return {
    /** @param {Details} details */
    show(details) {
      of = details;
      for (const { node, what } of buttons) {
        node.hidden = what.isThere?.(details) === false;
        const obstacle = what.obstacle(details);
        node.disabled = obstacle !== '';
        setAttribute(node, 'title', obstacle || null);
      }
      const blocked = buttons.filter(({ node }) => !node.hidden && node.disabled);
      const obstacles = blocked.map(({ what }) => `${what.action}: ${what.obstacle(details)}`);
      setText(why, obstacles.join(' · '));
      why.hidden = bar.hidden || obstacles.length === 0;
    },
    /** @param {boolean} admin */
    allow(admin) {
      bar.hidden = !admin;
      if (!admin) why.hidden = true;
    },
  };
}
