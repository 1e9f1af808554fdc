// The form that sends a request to this server and shows what comes back.

/** Elements of an input that are filled in: more would be no text to edit. */
const MOST_ELEMENTS = 4096;
/** Characters and bytes of an answer that are shown. */
const MOST_SHOWN = 200000;
const MOST_BYTES = 256;

/** Where this server's root is: a proxy may have it below a path of its own. */
const ROOT = location.pathname.replace(/\/v2\/docs\/?$/, '');

/** @type {Promise<string[]> | null} */
let names = null;

/** The models that there are, asked for once. */
function models() {
  names ??= fetch(`${ROOT}/v2/repository/index`, { method: 'POST' })
    .then((answer) => (answer.ok ? answer.json() : []))
    .then((index) => [...new Set(index.map((/** @type {any} */ model) => model.name))].sort())
    .catch(() => []);
  return /** @type {Promise<string[]>} */ (names);
}

let forms = 0;

/**
 * A field for a parameter.
 * @param {any} spec
 * @param {any} parameter
 * @param {string} form
 */
function fieldOf(spec, parameter, form) {
  const { name, schema, required } = parameter;
  const id = `${form}-${name}`;
  const isModel = parameter.in === 'path' && name === 'model';
  const input = el('input', {
    id,
    name,
    required: Boolean(required),
    inputmode: resolved(spec, schema).type === 'integer' ? 'numeric' : null,
    placeholder: required ? null : 'none',
    list: isModel ? `${id}-list` : null,
    autocomplete: 'off',
    autocapitalize: 'off',
    spellcheck: 'false',
  });
  const list = isModel ? el('datalist', { id: `${id}-list` }) : null;
  if (list) {
    models().then((all) => {
      list.append(...all.map((value) => el('option', { value })));
      if (!input.value && all.length > 0) input.value = all[0];
    });
  }
  return { parameter, input, node: el('label', { class: 'entry', for: id }, el('span', {}, name), input, list) };
}

/**
 * @param {any} spec
 * @param {string} method
 * @param {string} path
 * @param {any} operation
 * @returns {HTMLElement}
 */
function trial(spec, method, path, operation) {
  const form = `try-${(forms += 1)}`;
  const fields = (operation.parameters ?? []).map((/** @type {any} */ parameter) => fieldOf(spec, parameter, form));
  const body = operation.requestBody ? bodyOf(spec, operation.requestBody, form) : null;
  const send = el('button', { type: 'submit', class: 'primary' }, 'Send');
  const answer = el('div', { class: 'reply', role: 'status', 'aria-live': 'polite' });
  const command = el('pre', { tabindex: 0 });
  const fill = body && path.endsWith('/infer') ? el('button', { type: 'button', click: () => filled().catch(fail) }, 'Zeros for this model') : null;

  const value = (/** @type {string} */ name) => fields.find((/** @type {any} */ field) => field.parameter.name === name)?.input.value.trim() ?? '';
  const target = () => ROOT + path.replace(/\{([^}]*)\}/g, (_, name) => encodeURIComponent(value(name)));
  const headers = () => {
    const own = fields.filter((/** @type {any} */ { parameter, input }) => parameter.in === 'header' && input.value.trim());
    const sent = Object.fromEntries(own.map((/** @type {any} */ { parameter, input }) => [parameter.name, input.value.trim()]));
    return body ? { 'content-type': body.type(), ...sent } : sent;
  };

  async function filled() {
    const version = value('version') ? `/versions/${encodeURIComponent(value('version'))}` : '';
    const told = await fetch(`${ROOT}/v2/models/${encodeURIComponent(value('model'))}${version}`);
    const model = await told.json();
    if (!told.ok) throw new Error(model.error);
    body?.write(readable(zeros(model)));
    noted();
  }

  /** @param {Error} error */
  function fail(error) {
    answer.replaceChildren(el('p', { class: 'verdict', 'data-tone': 'bad' }, error.message));
  }

  function noted() {
    const quoted = (/** @type {string} */ text) => `'${text.replaceAll("'", "'\\''")}'`;
    const lines = Object.entries(headers()).map(([name, text]) => `  -H ${quoted(`${name}: ${text}`)}`);
    const data = body ? [`  ${body.argument(quoted)}`] : [];
    const verb = method === 'get' || (method === 'post' && body) ? '' : `-X ${method.toUpperCase()} `;
    command.textContent = [`curl -s ${verb}${quoted(location.origin + target())}`, ...lines, ...data].join(' \\\n');
  }

  async function ask(/** @type {Event} */ event) {
    event.preventDefault();
    send.disabled = true;
    answer.setAttribute('aria-busy', 'true');
    try {
      // The example of the description is another model's.
      if (fill && body?.isExample()) await filled();
      const began = performance.now();
      const response = await fetch(target(), { method: method.toUpperCase(), headers: headers(), body: body?.content() });
      const bytes = new Uint8Array(await response.arrayBuffer());
      answer.replaceChildren(...replied(response, bytes, performance.now() - began));
    } catch (error) {
      fail(error instanceof TypeError ? new Error('The server does not answer.') : /** @type {Error} */ (error));
    } finally {
      answer.removeAttribute('aria-busy');
      send.disabled = false;
    }
  }

  const node = el(
    'form',
    { class: 'trial-form', submit: ask, input: noted, keydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) node.requestSubmit();
    } },
    fields.length > 0 && el('div', { class: 'entries' }, ...fields.map((/** @type {any} */ field) => field.node)),
    body?.node ?? null,
    el('div', { class: 'actions' }, send, fill),
    answer,
    el('details', { class: 'command', toggle: noted }, el('summary', {}, 'The same in a terminal'), command),
  );
  return node;
}

/**
 * The body's field: a text for JSON, a file for bytes.
 * @param {any} spec
 * @param {any} requestBody
 * @param {string} form
 */
function bodyOf(spec, requestBody, form) {
  const types = Object.keys(requestBody.content);
  const id = `${form}-body`;
  const text = el('textarea', { id, class: 'editor', 'aria-label': 'Body', spellcheck: 'false', autocomplete: 'off', autocapitalize: 'off' });
  const file = el('input', { type: 'file', 'aria-label': 'File for the body', hidden: true });
  const kind = el('select', { 'aria-label': 'Type of the body', change: shown }, ...types.map((type) => el('option', {}, type)));
  const isText = () => kind.value.includes('json');

  function write(/** @type {string} */ written) {
    text.value = written;
    text.rows = Math.min(16, Math.max(3, written.split('\n').length + 1));
  }
  function shown() {
    text.hidden = !isText();
    file.hidden = isText();
  }
  const example = readable(exampleOf(spec, requestBody.content[types[0]]));
  write(example);
  const label = types.length > 1 ? kind : el('code', { class: 'quiet' }, types[0]);
  return {
    node: el('div', { class: 'body' }, el('div', { class: 'body-head' }, el('span', {}, 'Body'), label), text, file),
    write(/** @type {string} */ written) {
      kind.value = types.find((type) => type.includes('json')) ?? kind.value;
      shown();
      write(written);
    },
    isExample: () => isText() && text.value === example,
    type: () => kind.value,
    content: () => (isText() ? text.value : (file.files?.[0] ?? '')),
    argument: (/** @type {(text: string) => string} */ quoted) =>
      isText() ? `-d ${quoted(text.value)}` : `--data-binary ${quoted(`@${file.files?.[0]?.name ?? 'FILE'}`)}`,
  };
}

/**
 * A request of zeros for a model, by its metadata; open dimensions are 1.
 * @param {any} model
 */
function zeros(model) {
  const inputs = model.inputs.map((/** @type {any} */ { name, datatype, shape }) => {
    const sizes = shape.map((/** @type {number} */ size) => (size < 0 ? 1 : size));
    const count = sizes.reduce((/** @type {number} */ all, /** @type {number} */ size) => all * size, 1);
    if (count > MOST_ELEMENTS) throw new Error(`Input ${name} has ${count} elements: too many to edit here.`);
    if (['FP16', 'BF16'].includes(datatype)) throw new Error(`Input ${name} is ${datatype}, for which there is no JSON: send bytes.`);
    // A model that declares nothing and was asked nothing yet: most take these.
    return { name, datatype: datatype || 'FP32', shape: sizes, data: Array(count).fill(datatype === 'BOOL' ? false : 0) };
  });
  return { inputs };
}

/**
 * @param {Response} response
 * @param {Uint8Array} bytes
 * @param {number} took milliseconds
 */
function replied(response, bytes, took) {
  const type = response.headers.get('content-type') ?? '';
  const facts = [`${took < 10 ? took.toFixed(1) : Math.round(took)} ms`, `${bytes.length.toLocaleString('en')} bytes`, type.split(';')[0]];
  const lines = [...response.headers].map(([name, value]) => `${name}: ${value}`).join('\n');
  return [
    el('p', { class: 'verdict' }, el('span', { class: 'pill', 'data-tone': response.ok ? 'good' : 'bad' }, `${response.status} ${response.statusText}`.trim()), el('span', { class: 'quiet' }, facts.filter(Boolean).join(' · '))),
    bytes.length > 0 && el('pre', { tabindex: 0, 'aria-label': 'Body of the answer' }, bodyText(type, bytes)),
    el('details', {}, el('summary', {}, 'Headers'), el('pre', { tabindex: 0 }, lines)),
  ].filter(Boolean);
}

/**
 * @param {string} type
 * @param {Uint8Array} bytes
 */
function bodyText(type, bytes) {
  if (/json|^text\//.test(type)) {
    const text = new TextDecoder().decode(bytes);
    const shown = type.includes('json') ? readable(JSON.parse(text)) : text;
    return shown.length > MOST_SHOWN ? `${shown.slice(0, MOST_SHOWN)}\n… ${(shown.length - MOST_SHOWN).toLocaleString('en')} more characters` : shown;
  }
  const hex = [...bytes.slice(0, MOST_BYTES)].map((byte) => byte.toString(16).padStart(2, '0'));
  const rows = Array.from({ length: Math.ceil(hex.length / 16) }, (_, row) => hex.slice(row * 16, row * 16 + 16).join(' '));
  return rows.join('\n') + (bytes.length > MOST_BYTES ? `\n… ${(bytes.length - MOST_BYTES).toLocaleString('en')} more bytes` : '');
}
