// The same request as text for a shell and for Python.
import { pretty, pythonLiteral, stringify, textOf } from './exact.js';

const LONG = 8000;

/** Whether the request is too long to be pasted and is better sent from a file. */
export function isLong(request) {
  return stringify(request).length > LONG;
}

export function curl(request, { origin, hasKey }) {
  const key = hasKey ? ` \\\n  -H "X-API-Key: $SANDBOX_CLIENT_KEY"` : '';
  const data = isLong(request) ? '@request.json' : quote(pretty(stringify(request)));
  return `curl -s ${origin}/v1/run \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${data}`;
}

function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** `timeout`: seconds after which no answer can come any more. */
export function python(request, { origin, hasKey, timeout }) {
  const lines = isLong(request) ? ['import json', ''] : [];
  if (hasKey) lines.splice(lines.length ? 1 : 0, 0, 'import os', ...(lines.length ? [] : ['']));
  lines.push('import requests', '');
  if (isLong(request)) {
    lines.push('with open("request.json", encoding="utf-8") as file:', '    request = json.load(file)');
  } else {
    lines.push(`code = ${literalText(request.code)}`, 'request = {', '    "code": code,');
    for (const [name, value] of Object.entries(request)) {
      if (name !== 'code') lines.push(`    ${JSON.stringify(name)}: ${pythonLiteral(textOf(value))},`);
    }
    lines.push('}');
  }
  const headers = hasKey ? ', headers={"X-API-Key": os.environ["SANDBOX_CLIENT_KEY"]}' : '';
  lines.push(
    `response = requests.post("${origin}/v1/run", json=request, timeout=${timeout}${headers})`,
    'response.raise_for_status()  # the program\'s own failures are answers, not errors',
    'answer = response.json()',
    'print(answer["outcome"], answer["result"])',
  );
  return lines.join('\n');
}

function literalText(text) {
  if (!text.includes('\n') || /\\|"""|"$|[\0-\x08\x0b-\x1f\x7f]/.test(text)) return JSON.stringify(text);
  return `"""${text.startsWith('\n') ? '\\\n' : ''}${text}"""`;
}
