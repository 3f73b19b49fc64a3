// The page that tries the service out. What programs produce is only ever set as text, or shown by <img>.
import { edit } from './editor.js';
import { Raw, stringify } from './exact.js';
import { Refused, languages as listLanguages, run } from './run.js';
import { curl, isLong, python } from './snippets.js';

const $ = (id) => document.getElementById(id);
const PICTURES = new Set(['image/png', 'image/jpeg', 'image/gif', 'image/webp', 'image/svg+xml']);
const OUTCOMES = {
  success: 'Success',
  program_error: 'Program error',
  signalled: 'Ended by a signal',
  time_limit: 'Time limit',
  cpu_limit: 'CPU limit',
  memory_limit: 'Memory limit',
  output_limit: 'Output limit',
  cancelled: 'Cancelled',
};
const LARGEST_FILE = 8 * 1024 * 1024;

let languages = [];
let queueMs = 0;
let current = null;
let running = null;
let objectUrls = [];
const files = new Map();
const drafts = new Map();

const editor = edit($('code'), $('gutter'), { indent: () => (/\.(m?js|ts)$/.test(current?.source_name ?? '') ? '  ' : '    ') });

// The request

const mode = () => document.querySelector('input[name="mode"]:checked').value;

/** The request as it stands; null when the arguments are no JSON object, which is then said beside them. */
function request() {
  const body = { language: current?.base ?? 'python' };
  if (current?.profile) body.profile = current.profile;
  body.code = $('code').value;
  if (mode() === 'main') {
    const text = readArguments();
    if (text === null) return null;
    body.arguments = new Raw(text);
  } else {
    body.mode = 'script';
    if ($('stdin').value) body.stdin = $('stdin').value;
    if ($('args').value) body.args = $('args').value.replace(/\n$/, '').split('\n');
  }
  if (files.size) body.files = Object.fromEntries(files);
  return body;
}

/** The arguments as they were typed, digit by digit; null when they are no JSON object. */
function readArguments() {
  const text = $('arguments').value.trim() || '{}';
  let problem = '';
  try {
    const value = JSON.parse(text);
    if (value === null || typeof value !== 'object' || Array.isArray(value)) problem = 'Arguments must be a JSON object, such as {"name": "x"}.';
  } catch (error) {
    problem = `Arguments are no JSON: ${error.message}`;
  }
  $('arguments-error').textContent = problem;
  $('arguments').setAttribute('aria-invalid', String(Boolean(problem)));
  return problem ? null : text;
}

function showSnippets() {
  const body = request();
  if (body === null) return;
  const where = { origin: location.origin, hasKey: Boolean($('key').value), timeout: patience() };
  $('curl').textContent = curl(body, where);
  $('python').textContent = python(body, where);
  $('save').hidden = !isLong(body);
}

/** Seconds that a client must wait: for a container, for the program, and some for everything else. */
function patience() {
  return Math.ceil((queueMs + (current?.limits.wall_ms ?? 0)) / 1000) + 30;
}

// Running

async function start() {
  const body = request();
  if (running) return;
  if (body === null) {
    $('arguments').focus();
    return;
  }
  const abort = running = new AbortController();
  const began = performance.now();
  clearAnswer();
  $('run').disabled = true;
  $('stop').disabled = false;
  $('form').setAttribute('aria-busy', 'true');
  say('Running');
  const ticking = setInterval(() => { $('ticks').textContent = `${((performance.now() - began) / 1000).toFixed(0)} s`; }, 1000);
  try {
    showAnswer(await run(body, { key: $('key').value, signal: abort.signal, onOutput }));
    sayVerdict(` in ${milliseconds(performance.now() - began)}`);
  } catch (error) {
    flushOutput();
    if (error.name === 'AbortError') showVerdict('Stopped', 'The program was killed.', '');
    else showProblem(error);
    sayVerdict();
  } finally {
    clearInterval(ticking);
    $('ticks').textContent = '';
    running = null;
    $('run').disabled = false;
    $('stop').disabled = true;
    $('form').removeAttribute('aria-busy');
  }
}

/** Screen readers say it, wherever they are; `more` is for them alone, since it is shown elsewhere. */
function say(text, more = '') {
  $('state').replaceChildren(text, ...(more ? [element('span', { className: 'hidden' }, `. ${more}`)] : []));
}

function sayVerdict(text = '') {
  say($('outcome').textContent + text, $('verdict-text').textContent);
}

// Output comes in pieces faster than the page can be laid out, so it is shown once per frame.
let waiting = [];
let frame = 0;

function onOutput(stream, text) {
  waiting.push([stream, text]);
  frame ||= requestAnimationFrame(flushOutput);
}

function flushOutput() {
  cancelAnimationFrame(frame);
  frame = 0;
  if (!waiting.length) return;
  const output = $('output');
  const isAtEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
  for (const [stream, text] of waiting) {
    const last = output.lastElementChild;
    if (last?.className === stream) last.append(text);
    else output.append(element('span', { className: stream }, text));
  }
  waiting = [];
  showAnswerCard();
  $('output-box').hidden = false;
  if (isAtEnd) output.scrollTop = output.scrollHeight;
}

// The answer

let isAnswerShown = false;

function clearAnswer() {
  isAnswerShown = false;
  objectUrls.forEach((url) => URL.revokeObjectURL(url));
  objectUrls = [];
  waiting = [];
  for (const id of ['verdict', 'timings', 'output-box', 'result-box', 'artifacts-box', 'warnings-box']) $(id).hidden = true;
  for (const id of ['output', 'result', 'artifacts', 'timings', 'warnings']) $(id).replaceChildren();
}

/** Where the answer is below the program, bring it into view once per run. */
function showAnswerCard() {
  $('empty').hidden = true;
  if (isAnswerShown) return;
  isAnswerShown = true;
  const card = $('answer');
  if (card.getBoundingClientRect().top > innerHeight * 0.6) card.scrollIntoView();
}

function showVerdict(badge, text, kind) {
  showAnswerCard();
  $('verdict').hidden = false;
  $('outcome').textContent = badge;
  $('outcome').className = `badge ${kind}`;
  $('verdict-text').textContent = text;
}

function showAnswer(answer) {
  flushOutput();
  const isGood = answer.outcome === 'success';
  const facts = [];
  if (answer.error) facts.push(`${answer.error.type}: ${answer.error.message}${place(answer.error)}`);
  else if (answer.signal && !answer.outcome.endsWith('_limit')) facts.push(answer.signal);
  else if (answer.exit_code) facts.push(`exit code ${answer.exit_code}`);
  if (answer.truncated.stdout || answer.truncated.stderr) facts.push('output was cut at its limit');
  showVerdict(OUTCOMES[answer.outcome] ?? answer.outcome, facts.join('; '), isGood ? 'good' : 'bad');
  for (const [name, value] of [
    ['Queued', milliseconds(answer.queue_ms)],
    ['Overhead', milliseconds(answer.start_ms)],
    ['Wall time', milliseconds(answer.run_ms)],
    ['CPU time', milliseconds(answer.cpu_ms)],
    ['Memory', `${(answer.memory_kb / 1024).toFixed(1)} MB`],
  ]) $('timings').append(element('div', {}, element('dt', {}, name), element('dd', {}, value)));
  $('timings').hidden = false;
  if (answer.result) {
    $('result').textContent = answer.resultText;
    $('result-box').hidden = false;
  }
  answer.artifacts.forEach(showArtifact);
  for (const one of answer.warnings) $('warnings').append(element('li', {}, `Line ${one.line}: ${one.message}`));
  $('warnings-box').hidden = !answer.warnings.length;
}

/** Where in the program's own files it happened. */
function place({ line, traceback }) {
  const last = traceback.at(-1);
  if (last && last.file !== current?.source_name) return `, ${last.file} line ${last.line}`;
  return line ? `, line ${line}` : '';
}

function showArtifact(artifact) {
  const bytes = Uint8Array.from(atob(artifact.content_b64), (character) => character.charCodeAt(0));
  const item = element('li');
  if (PICTURES.has(artifact.mime_type)) {
    // An <img> runs no script, whatever an SVG holds.
    item.append(element('img', { src: objectUrl(bytes, artifact.mime_type), alt: artifact.name }));
  }
  // Saved, never opened: on this origin, HTML and SVG of a program must not become a page.
  const link = element('a', { href: objectUrl(bytes, 'application/octet-stream'), download: artifact.name }, artifact.name);
  item.append(element('p', {}, link, element('small', {}, size(artifact.size))));
  $('artifacts').append(item);
  $('artifacts-box').hidden = false;
}

function objectUrl(bytes, type) {
  const url = URL.createObjectURL(new Blob([bytes], { type }));
  objectUrls.push(url);
  return url;
}

function showProblem(error) {
  if (!(error instanceof Refused)) {
    showVerdict('No answer', `The service could not be reached (${error.message}).`, 'bad');
    return;
  }
  const { code, findings = [] } = error.problem;
  showVerdict(code, error.message, 'bad');
  for (const one of findings) onOutput('stderr', `Line ${one.line}: ${one.message}\n`);
  flushOutput();
  if (code === 'unauthorized') {
    $('key-box').open = true;
    $('key').focus();
  }
}

function milliseconds(value) {
  return value < 1000 ? `${value.toFixed(value < 10 ? 1 : 0)} ms` : `${(value / 1000).toFixed(2)} s`;
}

function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : bytes < 1024 * 1024 ? `${(bytes / 1024).toFixed(1)} KB` : `${(bytes / 1048576).toFixed(1)} MB`;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Languages

let loads = 0;

/** Read the list until it is there, as the service may just be starting; a later call takes over from an earlier one. */
async function loadLanguages() {
  const load = loads += 1;
  for (let pause = 500; load === loads; pause = Math.min(2 * pause, 5000)) {
    let why;
    try {
      const list = await listLanguages($('key').value);
      if (load !== loads) return;
      if (list.languages.length) {
        showLanguages(list);
        return;
      }
      why = 'no language is served yet';
    } catch (error) {
      if (error.problem?.status < 500) {
        showProblem(error);
        sayVerdict();
        return;
      }
      why = error.message;
    }
    if (load === loads) say(`Waiting for the service (${why})`);
    await new Promise((resolve) => { setTimeout(resolve, pause); });
  }
}

function showLanguages(list) {
  if (!languages.length) say('');
  ({ languages, queue_ms: queueMs } = list);
  $('language').replaceChildren(...languages.map(({ name, base, profile, version }) =>
    element('option', { value: name }, `${base}${profile ? `, ${profile}` : ''}${version ? ` (${version})` : ''}`)));
  const { name } = languages.find((one) => one.name === current?.name) ?? languages[0];
  $('language').value = name;
  choose(name);
}

function choose(name) {
  if (current) drafts.set(current.name, [$('code').value, $('arguments').value]);
  current = languages.find((one) => one.name === name);
  const [code, values] = drafts.get(name) ?? [current.example?.code ?? '', JSON.stringify(current.example?.arguments ?? {})];
  editor.set(code);
  $('arguments').value = values;
  const { limits, packages, has_network: hasNetwork } = current;
  $('limits').textContent = `Limits: ${limits.wall_ms / 1000} s`
    + (limits.memory_bytes ? `, ${Math.round(limits.memory_bytes / 1048576)} MB of memory` : '') + (hasNetwork ? '; public addresses can be reached.' : ', no network.');
  $('packages-title').textContent = `${current.name}${current.version ? ` ${current.version}` : ''}: ${packages.length} packages`;
  $('packages').replaceChildren(...packages.map((one) => element('li', {}, `${one.name} `, element('span', {}, one.version))));
  $('packages-box').hidden = !packages.length;
  showSnippets();
}

// Files

async function addFiles(list) {
  for (const file of list) {
    if (file.size > LARGEST_FILE) {
      say(`${file.name} is larger than ${size(LARGEST_FILE)}`);
      continue;
    }
    files.set(file.name, await contentOf(file));
  }
  $('files').value = '';
  showFiles();
}

async function contentOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    let text = '';
    for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return { b64: btoa(text) };
  }
}

function showFiles() {
  $('file-list').replaceChildren(...[...files.keys()].map((name) => {
    const remove = element('button', { type: 'button', ariaLabel: `Remove ${name}` }, '×');
    remove.addEventListener('click', () => {
      files.delete(name);
      showFiles();
      $('files').focus();
    });
    return element('li', {}, name, remove);
  }));
  showSnippets();
}

// Wiring

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  start();
});
$('stop').addEventListener('click', () => {
  running?.abort();
  $('run').focus();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    start();
  }
});
$('language').addEventListener('change', () => choose($('language').value));
// Its limits may be others.
$('key').addEventListener('change', loadLanguages);
for (const radio of document.querySelectorAll('input[name="mode"]')) {
  radio.addEventListener('change', () => {
    $('main-fields').hidden = mode() !== 'main';
    $('script-fields').hidden = mode() !== 'script';
    showSnippets();
  });
}
let pending = 0;
$('form').addEventListener('input', () => {
  clearTimeout(pending);
  pending = setTimeout(showSnippets, 150);
});
$('files').addEventListener('change', () => addFiles($('files').files));
$('save').addEventListener('click', () => {
  const url = URL.createObjectURL(new Blob([stringify(request())], { type: 'application/json' }));
  element('a', { href: url, download: 'request.json' }).click();
  URL.revokeObjectURL(url);
});
for (const button of document.querySelectorAll('[data-copy]')) {
  button.addEventListener('click', async () => {
    const source = $(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = 'Copied';
    } catch {
      // No clipboard without HTTPS, except on localhost: leave the text selected.
      getSelection().selectAllChildren(source);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
}
const tabs = [...document.querySelectorAll('[role="tab"]')];
for (const tab of tabs) {
  tab.addEventListener('click', () => select(tab));
  tab.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') {
      const other = tabs[(tabs.indexOf(tab) + 1) % tabs.length];
      select(other);
      other.focus();
    }
  });
}

function select(chosen) {
  for (const tab of tabs) {
    tab.setAttribute('aria-selected', String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    $(tab.getAttribute('aria-controls')).hidden = tab !== chosen;
  }
}

if (/Mac|iPhone|iPad/.test(navigator.platform)) document.querySelector('#run kbd').textContent = '⌘ ↵';
loadLanguages();
