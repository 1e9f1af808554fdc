// Tries a model out: a request that can be edited or drawn, and its answer.

import { answers } from './answer.js';
import { bring, infer, inferPath } from './api.js';
import { byId, copy, el, setText } from './dom.js';
import { tell } from './notice.js';
import { pad } from './pad.js';
import { curl, expanded, NOT_IN_JSON, picture, pixels, sample, written } from './request.js';

/** @typedef {import('./api.js').Details} Details */
/** @typedef {import('./api.js').Signature} Signature */
/** @typedef {import('./request.js').Image} Image */

const LANES = ['CRITICAL', 'HIGH', 'NORMAL', 'LOW'];

/** Lines of the request that are seen without scrolling. */
const [LEAST_LINES, MOST_LINES] = [6, 20];

/**
 * A field with its name.
 * @param {string} name
 * @param {HTMLElement} input
 */
function field(name, input) {
  return el('label', { class: 'field-row' }, el('span', {}, name), input);
}

/** @param {unknown} error */
function said(error) {
  const { message, reason } = /** @type {{message: string, reason?: string}} */ (error);
  return reason ? `${reason}: ${message}` : message;
}

/**
 * The form of one model.
 * @param {string} model
 * @param {Signature} signature
 */
function form(model, signature) {
  const editor = el('textarea', { class: 'editor', spellcheck: 'false', autocomplete: 'off', 'aria-label': 'The request, as JSON', 'aria-keyshortcuts': 'Control+Enter' });
  const version = el('select', {});
  const lane = el('select', {}, el('option', { value: '' }, 'the model’s'), ...LANES.map((name) => el('option', {}, name)));
  const timeout = el('input', { type: 'number', min: 1, step: 1, placeholder: 'none', inputmode: 'numeric' });
  const image = picture(signature);
  const shown = answers(image ? 'Draw, and see what it is taken for.' : 'Send it to see what comes back.');
  let isRunning = false;
  let isStale = false;
  /** How often the form was reset. */
  let since = 0;

  function headers() {
    /** @type {Record<string, string>} */
    const chosen = {};
    if (lane.value) chosen['x-priority'] = lane.value;
    if (timeout.value) chosen['x-timeout-ms'] = timeout.value;
    return chosen;
  }

  function body() {
    let request;
    try {
      request = JSON.parse(editor.value);
    } catch (error) {
      throw new Error(`The request is not JSON: ${said(error)}`);
    }
    return JSON.stringify(expanded(request));
  }

  /** One request at a time: of what is drawn meanwhile only the last counts. */
  async function send() {
    if (isRunning) {
      isStale = true;
      return;
    }
    isRunning = true;
    const asked = since;
    try {
      const told = await infer(inferPath(model, version.value), body(), headers());
      if (asked === since) shown.show(told, signature);
    } catch (error) {
      if (asked === since) shown.fail(said(error));
    }
    isRunning = false;
    if (isStale) {
      isStale = false;
      void send();
    }
  }

  /**
   * Writes what is drawn into the request, which may have been edited.
   * @param {Image} of
   * @param {number[]} ink
   */
  function drawn(of, ink) {
    let request;
    try {
      request = JSON.parse(editor.value);
    } catch {
      request = sample(signature);
    }
    const input = request?.inputs?.find?.((/** @type {{name: string}} */ { name }) => name === of.name);
    if (!input) return shown.fail(`The request has no input ${of.name}: press Reset.`);
    Object.assign(input, { datatype: of.datatype, shape: of.shape, data: pixels(of, ink) });
    write(written(request));
    void send();
  }

  /** @param {string} text */
  function write(text) {
    editor.value = text;
    editor.rows = Math.min(MOST_LINES, Math.max(LEAST_LINES, text.split('\n').length));
  }

  function reset() {
    write(written(sample(signature)));
    shown.clear();
    canvas?.empty();
    // What is still under way is of before.
    isStale = false;
    since += 1;
  }

  async function copyCurl(/** @type {Event} */ { currentTarget }) {
    try {
      const done = await copy(curl(inferPath(model, version.value), body(), headers()), /** @type {Element} */ (currentTarget));
      tell(done ? 'The command is copied.' : 'The browser does not let this page copy.', done ? 'good' : 'bad');
    } catch (error) {
      shown.fail(said(error));
    }
  }

  editor.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) void send();
  });
  const halves = signature.inputs.filter(({ datatype }) => NOT_IN_JSON.has(datatype ?? ''));
  const hint = halves.length > 0 ? `JSON cannot say ${halves[0].datatype}: send input ${halves[0].name} as bytes, with a client.` : '';
  const request = el(
    'div',
    { class: 'ask' },
    el('h3', {}, 'Request'),
    editor,
    hint ? el('p', { class: 'trouble' }, hint) : null,
    el('p', { class: 'quiet small' }, '“zeros”, “ones” or “random” in the place of a list of data stands for as many numbers as the shape has. Ctrl+Enter sends.'),
    el('div', { class: 'choices' }, field('Version', version), field('Priority', lane), field('Timeout, ms', timeout)),
    el(
      'div',
      { class: 'actions' },
      el('button', { type: 'submit', class: 'primary', id: 'send' }, 'Send'),
      el('button', { type: 'button', click: reset }, 'Reset'),
      el('button', { type: 'button', click: copyCurl }, 'Copy as curl'),
    ),
  );
  // What is drawn is answered beside it; the request that it becomes comes last.
  const canvas = image ? pad(image, (ink) => drawn(image, ink), reset) : null;
  const node = el(
    'form',
    {
      class: canvas ? 'trial drawn' : 'trial',
      submit: (/** @type {Event} */ event) => {
        event.preventDefault();
        void send();
      },
    },
    ...(canvas ? [canvas.node, shown.node, request] : [request, shown.node]),
  );
  reset();
  return {
    node,
    /** @param {Details} details */
    offer({ live_version: live, loaded }) {
      const beside = loaded.map((other) => other.version).filter((other) => other !== live);
      const options = ['', ...beside].map((value) => ({ value, text: value || `live${live ? ` (${live})` : ''}` }));
      options.forEach(({ value, text }, index) => {
        const option = version.options[index] ?? version.appendChild(el('option'));
        option.value = value;
        setText(option, text);
      });
      version.length = options.length;
    },
  };
}

/**
 * What can be done about a model without a signature: it is not in memory.
 * @param {Details} details
 * @param {() => void} brought
 */
function absent({ name, state }, brought) {
  if (state !== 'on_demand') {
    return [el('p', { class: 'empty' }, 'No version is live: reload the model, or mend what keeps it from loading (see its history).')];
  }
  const button = el('button', { type: 'button', class: 'primary' }, 'Load it now');
  button.addEventListener('click', async () => {
    button.disabled = true;
    try {
      await bring(name);
      brought();
    } catch (error) {
      tell(said(error), 'bad');
      button.disabled = false;
    }
  });
  return [el('p', { class: 'empty' }, 'It is not in memory, and what it takes is known once it is. Its next request loads it.'), button];
}

/**
 * The panel. What somebody has typed or drawn stays as long as the model takes and returns the same.
 * @param {() => void} brought a model was loaded
 */
export function trial(brought) {
  const panel = byId('panel-try');
  let made = '';
  /** @type {ReturnType<typeof form> | null} */
  let current = null;
  return {
    /** @param {Details} details */
    show(details) {
      const wanted = JSON.stringify([details.name, details.signature, details.signature ? '' : details.state]);
      if (wanted !== made) {
        made = wanted;
        current = details.signature ? form(details.name, details.signature) : null;
        panel.replaceChildren(...(current ? [current.node] : absent(details, brought)));
      }
      current?.offer(details);
    },
  };
}
