// The page: a list of routes beside what there is to say of each. A route is built when it is first opened.

/** What the groups of the document are called, and about. */
const GROUPS = new Map([
  ['models', ['Models', 'Run models, and ask what they take and have done.']],
  ['repository', ['Repository', 'What there is to load, and loading it.']],
  ['server', ['Server', 'Who answers here, and how it is.']],
  ['shared memory', ['Shared memory', 'Tensors of callers on the same machine, where a setting lets them.']],
]);

/** @typedef {{id: string, method: string, path: string, operation: any, node: any, link: any, words: string}} Route */

/** @param {string} id */
const byId = (id) => /** @type {any} */ (document.getElementById(id));

/**
 * @param {any} spec
 * @returns {Map<string, Route[]>}
 */
function grouped(spec) {
  const groups = new Map([...GROUPS.keys()].map((tag) => [tag, /** @type {Route[]} */ ([])]));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(/** @type {any} */ (methods))) {
      const tag = operation.tags?.[0] ?? 'server';
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag)?.push(route(spec, method, path, operation));
    }
  }
  return groups;
}

/**
 * @param {any} spec
 * @param {string} method
 * @param {string} path
 * @param {any} operation
 * @returns {Route}
 */
function route(spec, method, path, operation) {
  const id = `${method}${path.replace(/[^a-z0-9]+/gi, '-')}`;
  let isBuilt = false;
  const head = el('summary', {}, methodOf(method), pathOf(path), el('span', { class: 'summary' }, operation.summary));
  const node = el('details', { id, class: 'route', toggle: () => {
    if (!node.open || isBuilt) return;
    isBuilt = true;
    node.append(el('div', { class: 'inside' }, told(spec, operation), tried(spec, method, path, operation)));
  } }, head);
  const link = el('a', { href: `#${id}` }, methodOf(method), pathOf(path.replace(/^\/v2/, '') || '/'));
  return { id, method, path, operation, node, link, words: `${method} ${path} ${operation.summary}`.toLowerCase() };
}

/**
 * What the document says of a route.
 * @param {any} spec
 * @param {any} operation
 */
function told(spec, operation) {
  const { parameters = [], requestBody, responses, description } = operation;
  const parameter = (/** @type {any} */ { name, in: where, required, schema, description: text }) =>
    el('li', {},
      el('p', { class: 'part' }, el('code', {}, name), el('span', { class: 'type' }, `${typeOf(spec, schema)} in the ${where}`), required && el('span', { class: 'needed' }, 'required')),
      text && el('p', { class: 'quiet' }, ...prose(text)));
  return el('div', { class: 'told' },
    description && el('p', {}, ...prose(description)),
    parameters.length > 0 && el('section', {}, el('h4', {}, 'Parameters'), el('ul', { class: 'parts' }, ...parameters.map(parameter))),
    requestBody && el('section', {}, el('h4', {}, 'Body', !requestBody.required && el('span', { class: 'quiet' }, ' (may be left out)')), ...contents(spec, requestBody.content)),
    el('section', {}, el('h4', {}, 'Answers'), ...Object.entries(responses).map(([status, response]) => answered(spec, status, response))));
}

/**
 * @param {any} spec
 * @param {string} status
 * @param {any} response
 */
function answered(spec, status, response) {
  const tone = status.startsWith('2') ? 'good' : 'bad';
  const name = status === 'default' ? 'other' : status;
  const head = el('summary', {}, el('span', { class: 'status', 'data-tone': tone }, name), el('span', {}, ...prose(response.description)));
  return el('details', { class: 'answered', open: status === '200' }, head, ...contents(spec, response.content ?? {}));
}

/**
 * @param {any} spec
 * @param {Record<string, any>} content
 */
function contents(spec, content) {
  return Object.entries(content).map(([type, media]) => {
    const isText = type.includes('json');
    const name = media.schema?.$ref?.split('/').pop();
    return el('div', { class: 'content' },
      el('p', { class: 'part' }, el('code', {}, type), el('span', { class: 'type' }, name ?? typeOf(spec, media.schema))),
      parts(spec, media.schema),
      isText && el('details', {}, el('summary', {}, 'Example'), el('pre', { tabindex: 0 }, readable(exampleOf(spec, media)))));
  });
}

/**
 * @param {any} spec
 * @param {string} method
 * @param {string} path
 * @param {any} operation
 */
function tried(spec, method, path, operation) {
  return el('section', { class: 'tried', 'aria-label': `Try ${method.toUpperCase()} ${path}` }, el('h4', {}, 'Try it'), trial(spec, method, path, operation));
}

/** @param {any} spec */
function draw(spec) {
  byId('about').replaceChildren(...prose(spec.info.description));
  const groups = [...grouped(spec)].filter(([, routes]) => routes.length > 0);
  const sections = groups.map(([tag, routes]) => {
    const [title, text] = GROUPS.get(tag) ?? [tag, ''];
    const items = routes.map(({ link }) => el('li', {}, link));
    return {
      routes,
      items,
      section: el('section', { class: 'group' }, el('h2', {}, title), el('p', { class: 'quiet' }, text), ...routes.map(({ node }) => node)),
      list: el('section', {}, el('h3', {}, title), el('ul', {}, ...items)),
    };
  });
  byId('routes').replaceChildren(...sections.map(({ section }) => section));
  byId('contents').replaceChildren(...sections.map(({ list }) => list));

  const filter = byId('filter');
  filter.addEventListener('input', () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    let any = false;
    for (const { routes, items, section, list } of sections) {
      const fits = routes.map((one) => words.every((/** @type {string} */ word) => one.words.includes(word)));
      routes.forEach(({ node }, at) => { node.hidden = !fits[at]; });
      items.forEach((item, at) => { item.hidden = !fits[at]; });
      section.hidden = list.hidden = !fits.includes(true);
      any ||= fits.includes(true);
    }
    byId('none').hidden = any;
  });
  document.addEventListener('keydown', (event) => {
    const isTyping = event.target instanceof Element && event.target.closest('input, textarea, select');
    if (event.key !== '/' || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    filter.focus();
  });

  const all = sections.flatMap(({ routes }) => routes);
  const follow = () => {
    const there = all.find(({ id }) => `#${id}` === location.hash);
    for (const { id, link } of all) link.toggleAttribute('aria-current', id === there?.id);
    if (!there) return;
    there.node.open = true;
    there.node.scrollIntoView({ block: 'start' });
    there.node.querySelector('summary').focus({ preventScroll: true });
  };
  window.addEventListener('hashchange', follow);
  // A link to where one is already leads there too.
  for (const { link } of all) link.addEventListener('click', () => link.getAttribute('href') === location.hash && follow());
  follow();
}

fetch(`${ROOT}/v2/openapi.json`)
  .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(`${answer.status}`))))
  .then(draw)
  .catch((error) => {
    byId('about').textContent = `The description of the routes cannot be read (${error.message}): load the page again.`;
  });
