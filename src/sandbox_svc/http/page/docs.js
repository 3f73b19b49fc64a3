// Shows /openapi.json for people: operations, then the types they speak of.

const main = document.getElementById('docs');

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.flat().filter((child) => child !== null && child !== ''));
  return made;
}

/** Text in which `x` is code. */
function prose(text = '') {
  return text.split('`').map((part, at) => (at % 2 ? element('code', {}, part) : part));
}

const nameOf = (ref) => ref.split('/').pop();
const link = (ref) => element('a', { href: `#${nameOf(ref)}` }, nameOf(ref));

/** A schema in a few words, with links to the types it names. */
function type(schema) {
  if (schema.$ref) return [link(schema.$ref)];
  if (schema.allOf?.length === 1) return type(schema.allOf[0]);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.flatMap((one, at) => (at ? [' or ', ...type(one)] : type(one)));
  if (schema.enum) return schema.enum.flatMap((one, at) => [at ? ', ' : '', element('code', {}, JSON.stringify(one))]);
  if (schema.type === 'array') return ['list of ', ...type(schema.items ?? {})];
  if (schema.type === 'object' && typeof schema.additionalProperties === 'object') {
    return ['map of ', ...type(schema.additionalProperties)];
  }
  return [`${schema.type ?? 'any JSON'}${schema.contentEncoding ? ` (${schema.contentEncoding})` : ''}`];
}

function bounds(schema) {
  const all = [schema, ...(schema.anyOf ?? [])];
  const find = (name) => all.map((one) => one[name]).find((value) => value !== undefined);
  const words = [];
  const range = [find('minimum'), find('maximum')];
  if (range.some((one) => one !== undefined)) words.push(`${range[0] ?? ''}…${range[1] ?? ''}`);
  if (find('maxLength') !== undefined) words.push(`at most ${find('maxLength')} characters`);
  if (find('maxItems') !== undefined) words.push(`at most ${find('maxItems')}`);
  if (find('maxProperties') !== undefined) words.push(`at most ${find('maxProperties')}`);
  if (schema.default !== undefined && schema.default !== null) words.push(`default ${JSON.stringify(schema.default)}`);
  return words.join(', ');
}

function typeCard(name, schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([field, one]) => {
    const meaning = one.description ?? one.anyOf?.find((choice) => choice.description)?.description ?? '';
    return element('tr', {},
      element('th', { scope: 'row' }, element('code', {}, field), ' ',
        schema.required?.includes(field) ? element('span', { className: 'needed' }, 'required') : ''),
      element('td', { className: 'type' }, type(one)),
      element('td', {}, prose(meaning), meaning && bounds(one) ? ' ' : '', element('small', {}, bounds(one))));
  });
  return element('section', { className: 'card', id: name }, element('h3', {}, name), element('p', {}, prose(schema.description)),
    rows.length ? element('table', {}, element('thead', {}, element('tr', {}, ['Field', 'Type', 'Meaning'].map((title) =>
      element('th', { scope: 'col' }, title)))), element('tbody', {}, rows)) : '');
}

function headers(all = {}) {
  const names = Object.keys(all);
  return names.length ? element('small', {}, ' With ', names.flatMap((name, at) => [at ? ', ' : '', element('code', {}, name)]), '.') : '';
}

function responses(all) {
  return element('table', { className: 'answers' }, element('thead', {}, element('tr', {}, ['Status', 'Body', 'When'].map((title) =>
    element('th', { scope: 'col' }, title)))), element('tbody', {}, Object.entries(all).map(([status, one]) => {
    const bodies = Object.entries(one.content ?? {}).flatMap(([media, { schema }], at) =>
      [at ? element('br') : '', ...(schema?.$ref ? [link(schema.$ref)] : [media])]);
    return element('tr', {}, element('th', { scope: 'row' }, element('code', {}, status)),
      element('td', { className: 'type' }, bodies), element('td', {}, prose(one.description), headers(one.headers)));
  })));
}

function head(method, path) {
  return [element('span', { className: `method ${method}` }, method.toUpperCase()), element('code', {}, path)];
}

function operationCard(path, method, operation) {
  const body = operation.requestBody?.content['application/json'];
  const example = body?.example && [element('h3', {}, 'Example'),
    element('pre', { className: 'block', tabIndex: 0 }, `POST ${path}\n\n${JSON.stringify(body.example, null, 2)}`)];
  return element('section', { className: 'card', id: operation.operationId },
    element('h2', { className: 'operation' }, head(method, path)), element('p', {}, prose(operation.summary), '.'),
    body ? element('p', {}, 'Takes ', type(body.schema), '.') : '', example ?? '', element('h3', {}, 'Answers'), responses(operation.responses));
}

async function show() {
  const response = await fetch('/openapi.json');
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  const document_ = await response.json();
  const operations = Object.entries(document_.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => [path, method, operation]));
  const keys = Object.values(document_.components.securitySchemes ?? {}).map((one) =>
    (one.type === 'apiKey' ? `${one.name}: KEY` : `Authorization: ${one.scheme[0].toUpperCase()}${one.scheme.slice(1)} KEY`));
  main.append(
    element('section', { className: 'card' },
      element('h2', {}, `The API, version ${document_.info.version}`), element('p', {}, prose(document_.info.description)),
      element('p', {}, 'Where the service asks for an API key, send it as ',
        keys.flatMap((key, at) => [at ? ' or ' : '', element('code', {}, key)]), '. For tools: ',
        element('a', { href: '/openapi.json' }, 'openapi.json'), ` (OpenAPI ${document_.openapi}).`),
      element('ol', { className: 'index' }, operations.map(([path, method, operation]) => element('li', {},
        element('a', { href: `#${operation.operationId}` }, head(method, path), element('span', {}, prose(operation.summary))))))),
    ...operations.map((operation) => operationCard(...operation)),
    element('h2', {}, 'Types'),
    ...Object.entries(document_.components.schemas).map(([name, schema]) => typeCard(name, schema)),
  );
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

show().catch((error) => main.append(element('p', { className: 'card' }, `openapi.json could not be read (${error.message}).`)));
