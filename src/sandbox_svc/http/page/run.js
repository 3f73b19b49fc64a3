// Runs a program over `POST /v1/run` and tells what happens as it happens.
import { member, pretty, stringify } from './exact.js';

/** An answer that is a problem document, or no answer of the service at all. */
export class Refused extends Error {
  constructor(problem) {
    super(problem.detail || problem.title);
    this.problem = problem;
  }
}

/**
 * Run `request`; `onOutput(stream, text)` is called while the program runs. Resolves with the answer,
 * and as `resultText` with what main returned, digit by digit.
 * Rejects with `Refused`, or with what `fetch` rejects with, an `AbortError` after `signal` was aborted.
 */
export async function run(request, { key, signal, onOutput }) {
  const headers = { 'Accept': 'text/event-stream', 'Content-Type': 'application/json', ...withKey(key) };
  const response = await fetch('/v1/run', { method: 'POST', headers, body: stringify(request), signal });
  if (!response.headers.get('Content-Type')?.startsWith('text/event-stream')) throw await refusal(response);
  for await (const { name, data, text } of events(response.body)) {
    if (name === 'output') onOutput(data.stream, data.text);
    else if (name === 'result') return data.result ? { ...data, resultText: pretty(member(member(text, 'result'), 'value')) } : data;
    else if (name === 'problem') throw new Refused(data);
  }
  throw new Refused({ code: 'interrupted', title: 'The connection ended before the answer came' });
}

/** The languages that are served. Rejects with `Refused`, or with what `fetch` rejects with. */
export async function languages(key) {
  const response = await fetch('/v1/languages', { headers: withKey(key) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

function withKey(key) {
  return key ? { 'X-API-Key': key } : {};
}

async function refusal(response) {
  return new Refused(await response.json().catch(() => ({ title: `HTTP ${response.status}`, code: `${response.status}` })));
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split('\n\n');
    text = blocks.pop();
    for (const block of blocks) {
      const fields = {};
      for (const line of block.split('\n')) {
        const at = line.indexOf(': ');
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
      }
      if (fields.event) yield { name: fields.event, data: JSON.parse(fields.data), text: fields.data };
    }
  }
}
