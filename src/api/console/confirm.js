// Asks before something is changed.

import { byId, el, setText } from './dom.js';

/**
 * What may be chosen with a question: one of some options, each as value and text, or a number.
 * @typedef {{name: string, label: string, options?: string[][], number?: {least: number, most: number, step: number, value: number}}} Field
 */

/** @type {HTMLDialogElement} */
const dialog = byId('confirm');
/** @type {HTMLFormElement} */
const form = byId('confirm-form');
const fields = byId('confirm-fields');
/** @type {HTMLButtonElement} */
const yes = byId('confirm-yes');
/** @type {HTMLButtonElement} */
const no = byId('confirm-no');

/** @param {Field} field */
function field({ name, label, options, number }) {
  const choices = (options ?? []).map(([value, text]) => el('option', { value }, text));
  const input = number
    ? el('input', { name, type: 'number', min: number.least, max: number.most, step: number.step, value: number.value, required: true })
    : el('select', { name }, ...choices);
  return el('label', { class: 'field-row' }, el('span', {}, label), input);
}

/**
 * What the reader has chosen, by the names of the fields; null where it is not wanted.
 * @param {{title: string, text: string, action: string, isRisky?: boolean, fields?: Field[]}} question
 * @returns {Promise<Record<string, string> | null>}
 */
export function confirmed({ title, text, action, isRisky = false, fields: asked = [] }) {
  setText(byId('confirm-title'), title);
  setText(byId('confirm-text'), text);
  setText(yes, action);
  yes.classList.toggle('risky', isRisky);
  fields.replaceChildren(...asked.map(field));
  fields.hidden = asked.length === 0;
  dialog.returnValue = '';
  dialog.showModal();
  // What cannot be undone at once is not done by a key that was pressed for something else.
  (isRisky ? no : yes).focus();
  return new Promise((resolve) => {
    const said = () => (dialog.returnValue === 'yes' ? Object.fromEntries(new FormData(form)) : null);
    dialog.addEventListener('close', () => resolve(/** @type {Record<string, string> | null} */ (said())), { once: true });
  });
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  dialog.close('yes');
});
no.addEventListener('click', () => dialog.close());
