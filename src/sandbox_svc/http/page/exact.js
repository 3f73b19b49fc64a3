// JSON as it was written. `JSON.parse` rounds whole numbers above 2^53, sorts names that are numbers and drops duplicates;
// what people send and programs return is none of its business. Takes valid JSON only.

/** A value of a request that is JSON already. */
export class Raw {
  constructor(text) {
    this.text = text;
  }
}

export function textOf(value) {
  return value instanceof Raw ? value.text : JSON.stringify(value);
}

/** A request as JSON. */
export function stringify(request) {
  return `{${Object.entries(request).map(([name, value]) => `${JSON.stringify(name)}:${textOf(value)}`).join(',')}}`;
}

/** The value of the first member called `wanted`, of an object. */
export function member(object, wanted) {
  let depth = 0;
  let name = '';
  let start = -1;
  for (const [token, at] of tokens(object)) {
    if (depth === 1) {
      if (token === ',' || token === '}') {
        if (start >= 0) return object.slice(start, at).trim();
        name = '';
      } else if (token === ':') {
        if (JSON.parse(name) === wanted) start = at + 1;
      } else if (!name) {
        name = token;
      }
    }
    if (token === '{' || token === '[') depth += 1;
    else if (token === '}' || token === ']') depth -= 1;
  }
  return undefined;
}

/** Laid out as `JSON.stringify(value, null, 2)` does it. */
export function pretty(text) {
  const out = [];
  let depth = 0;
  let isOpened = false;
  const line = () => `\n${'  '.repeat(depth)}`;
  for (const [token] of tokens(text)) {
    if (token === '}' || token === ']') {
      depth -= 1;
      out.push(isOpened ? '' : line(), token);
      isOpened = false;
      continue;
    }
    if (isOpened) out.push(line());
    isOpened = token === '{' || token === '[';
    if (isOpened) depth += 1;
    if (token === ',') out.push(token, line());
    else if (token === ':') out.push(': ');
    else out.push(readable(token));
  }
  return out.join('');
}

const PYTHON = { true: 'True', false: 'False', null: 'None', ',': ', ', ':': ': ' };

/** The same value as Python writes it. */
export function pythonLiteral(text) {
  return Array.from(tokens(text), ([token]) => PYTHON[token] ?? readable(token)).join('');
}

/** Characters for people instead of their escapes. */
function readable(token) {
  return token[0] === '"' ? JSON.stringify(JSON.parse(token)) : token;
}

function* tokens(text) {
  for (let at = 0; at < text.length;) {
    let end = at + 1;
    if (text[at] === '"') {
      // By hand: regular expressions overflow on the megabytes of an artifact.
      while (text[end] !== '"' && end < text.length) end += text[end] === '\\' ? 2 : 1;
      end += 1;
    } else if (' \t\r\n'.includes(text[at])) {
      at = end;
      continue;
    } else if (!'{}[],:'.includes(text[at])) {
      while (end < text.length && !'{}[],: \t\r\n'.includes(text[end])) end += 1;
    }
    yield [text.slice(at, end), at];
    at = end;
  }
}
