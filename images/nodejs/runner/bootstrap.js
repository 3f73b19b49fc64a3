'use strict';
/*
 * Runs one JavaScript program in a process that was started for it alone, and reports on the result pipe.
 *
 * The process is parked in `readProgram` before any request exists. What is needed after the program has run is bound
 * here first: a program that patches `JSON` or `process` harms itself and not its report.
 */
const fs = require('fs');
const path = require('path');
const Module = require('module');
const { fileURLToPath, pathToFileURL } = require('url');
const { inspect, types: { isNativeError, isPromise } } = require('util');

const RESULT_FD = 3;
const PROGRAM_FD = 4;
const LINGER_MS = 250;
const MAX_TRACE_CHARS = 64 * 1024;
const MAX_MESSAGE_CHARS = 4000;
// Of a report, as the supervisor takes it.
const MAX_ERROR_BYTES = 32 * 1024;
const MAX_FRAMES = 20;
const MAX_FILE_CHARS = 512;
const MAX_TEXT_CHARS = 200;
const MAX_SHOWN_FILE_BYTES = 1024 * 1024;
const UNSETTLED_EXIT = 13;
const HANDLER_FAILED_EXIT = 7;

const { writeSync, readSync, closeSync, writeFileSync, readFileSync, statSync } = fs;
const { stringify, parse } = JSON;
const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
const emit = process.emit.bind(process);
const reallyExit = process.reallyExit.bind(process);
const BytesArray = Uint8Array;
const replace = Function.prototype.call.bind(String.prototype.replace);
const slice = Function.prototype.call.bind(String.prototype.slice);
const split = Function.prototype.call.bind(String.prototype.split);
const trim = Function.prototype.call.bind(String.prototype.trim);
const indexOf = Function.prototype.call.bind(String.prototype.indexOf);
const exec = Function.prototype.call.bind(RegExp.prototype.exec);
const setBytes = Function.prototype.call.bind(Uint8Array.prototype.set);
const then = Function.prototype.call.bind(Promise.prototype.then);
const resolve = Promise.resolve.bind(Promise);
const { wait } = Atomics;
const { setPrototypeOf, defineProperty } = Object;
const { deleteProperty } = Reflect;
const { stripTypeScriptTypes } = Module;
const NEVER = new Int32Array(new SharedArrayBuffer(4));
const subarray = Function.prototype.call.bind(Uint8Array.prototype.subarray);

// Node queues what a full pipe does not take: lost when the program ends, and a flood would fill memory instead of
// meeting the output limit.
for (const stream of [process.stdout, process.stderr]) stream._handle?.setBlocking?.(true);

// Only the program's own frames are news to its author. Properties of an error begin behind the last one.
const HERE = __dirname.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&');
const OUR_FRAMES = new RegExp(`\\n +at [^\\n]*(?:${HERE}\\/|node:)[^\\n]*?( \\{)?(?=\\n|$)`, 'g');
// Lets a plain `function main` be found; a newline first, so that no comment of the program can swallow it. An ES module
// has no `module`: there, what is under the symbol takes it.
const PLAIN_MAIN = Symbol.for('sandbox_svc.main');
const EXPORT_MAIN = "\n;if (typeof main === 'function') { globalThis[Symbol.for('sandbox_svc.main')]?.(main); " +
  "if (typeof module === 'object' && module.exports && typeof module.exports.main !== 'function') " +
  "try { module.exports.main = main; } catch {} }";

// What the engine counts lines by.
const LINE_END = /\r\n|[\n\r\u2028\u2029]/;

class ProgramFailed extends Error {}

function readProgram() {
  report('P', '');
  const chunks = [];
  const chunk = Buffer.allocUnsafeSlow(1 << 20);
  for (let count; (count = readSync(PROGRAM_FD, chunk)) > 0;) chunks.push(Buffer.from(chunk.subarray(0, count)));
  closeSync(PROGRAM_FD);
  return Buffer.concat(chunks);
}

function message(kind, text) {
  const payload = encode(text);
  const bytes = new BytesArray(5 + payload.length);
  bytes[0] = kind.charCodeAt(0);
  bytes[1] = payload.length >>> 24;
  bytes[2] = payload.length >>> 16;
  bytes[3] = payload.length >>> 8;
  bytes[4] = payload.length;
  setBytes(bytes, payload, 5);
  return bytes;
}

function writeAll(fd, bytes) {
  for (let at = 0; at < bytes.length;) at += writeSync(fd, subarray(bytes, at));
}

function report(kind, text) {
  writeAll(RESULT_FD, message(kind, text));
}

function encodeResult(value) {
  if (value === undefined) throw new ProgramFailed('main returned undefined; return a value or null');
  const text = stringify(value);
  if (text === undefined) throw new ProgramFailed(`main returned a ${typeof value}, which is not JSON`);
  return text;
}

/** End as the interpreter would: run exit handlers, then report. `result` is null after a failure. */
function finish(result, code) {
  // As node does, so that a handler which exits is not called again, and what it says of the exit code holds.
  process._exiting = true;
  process.exitCode = code;
  process.reallyExit = (own) => conclude(own ? null : result, own ?? 0);
  try {
    emit('exit', code);
    if (result !== null || process.exitCode) code = process.exitCode ?? code;
  } catch (error) {
    if (result !== null) {
      reportFailure(error);
      result = null;
      code = 1;
    }
  }
  conclude(result, code);
}

/** Report in one go, and end. */
function conclude(result, code) {
  const first = result === null ? new BytesArray(0) : message('R', result);
  const last = message('D', `${code}`);
  const both = new BytesArray(first.length + last.length);
  setBytes(both, first, 0);
  setBytes(both, last, first.length);
  try {
    writeAll(RESULT_FD, both);
  } catch {
    // The program closed the pipe: its result is lost, its exit status is not.
    reallyExit(code);
  }
  // The supervisor has all it needs and kills this process once it has read its peak memory; exiting at once would only
  // delay the answer, and not exiting at all would keep a program that spoiled its result pipe until its time limit.
  wait(NEVER, 0, 0, LINGER_MS);
  reallyExit(code);
}

/** Report an error, then show it on stderr: what is shown may be what is too much output. */
function reportFailure(error) {
  let trace;
  let name = 'Error';
  let text = '';
  let line = null;
  let traceback = [];
  try {
    trace = error instanceof ProgramFailed ? error.message : replace(inspect(error), OUR_FRAMES, '$1');
    if (trace.length > MAX_TRACE_CHARS) trace = `${slice(trace, 0, MAX_TRACE_CHARS)}\n... (traceback truncated)`;
    if (isError(error)) {
      if (!(error instanceof ProgramFailed)) name = `${error.name}`;
      text = slice(`${error.message}`, 0, MAX_MESSAGE_CHARS);
    } else {
      text = slice(trace, 0, MAX_MESSAGE_CHARS);
    }
  } catch {
    trace = 'Uncaught exception (it cannot be shown)';
  }
  try {
    let places = isError(error) ? ownPlaces(error) : [];
    const found = places.length === 0 && syntaxErrorLine(error);
    if (found) {
      places = [{ file, own: slice(file, ROOT.length), line: found, called: '<anonymous>' }];
      trace = `${file}:${found}\n${lineOf(file, found)}\n\n${trace}`;
    }
    for (let at = 0; at < places.length; at++) if (places[at].file === file) line = places[at].line;
    traceback = framesOf(places);
  } catch {
    // An error object is the program's code too.
  }
  const fields = bare({ type: slice(name, 0, 200), message: text, line, is_memory: false, traceback });
  let encoded = stringify(fields);
  // Frames may be of any script, whose characters take more bytes than one.
  while (encode(encoded).length > MAX_ERROR_BYTES && traceback.length > 0) {
    fields.traceback = traceback = without(traceback, traceback.length >> 1);
    encoded = stringify(fields);
  }
  try {
    report('E', encoded);
  } catch {
    // The program closed the pipe.
  }
  try {
    writeAll(2, encode(`${trace}\n`));
  } catch {
    // The program closed its stderr.
  }
}

/** Also one of another realm, or where the program has done away with `Error`. */
function isError(value) {
  return isNativeError(value) || value instanceof Error;
}

/** End as a program does whose main failed. */
function fail(error) {
  reportFailure(error);
  finish(null, 1);
}

/** What it says as JSON, whatever the program has put into the prototypes of objects and lists. */
function bare(value) {
  return setPrototypeOf(value, null);
}

function without(list, index) {
  const rest = bare([]);
  for (let at = 0; at < list.length; at++) if (at !== index) rest[rest.length] = list[at];
  return rest;
}

/** Where an error came from, outermost call first, as far as that is in files below the working directory. */
function ownPlaces(error) {
  const stack = slice(`${error.stack}`, 0, MAX_TRACE_CHARS);
  const places = bare([]);
  // What stands before the frames is a syntax error's place, with the line, and the message, which may say anything.
  const message = `${error.message}`;
  const at = indexOf(stack, message);
  const lines = split(at < 0 ? stack : slice(stack, at + message.length), '\n');
  for (let index = lines.length - 1; index >= 0; index--) {
    const found = exec(FRAME, lines[index]);
    if (found) addPlace(places, found[2], found[3], found[4], found[1] || '<anonymous>');
  }
  const header = at > 0 && exec(SYNTAX, slice(stack, 0, at));
  if (header) addPlace(places, header[1], header[2], header[3], '<anonymous>');
  return places;
}

function addPlace(places, scheme, name, line, called) {
  const file = scheme ? fileURLToPath(`file://${ROOT}${name}`) : ROOT + name;
  const own = slice(file, ROOT.length);
  if (own.length <= MAX_FILE_CHARS && !exec(/(?:^|\/)\.{0,2}(?:\/|$)/, own)) {
    places[places.length] = { file, own, line: Number(line), called };
  }
}

function framesOf(places) {
  const half = MAX_FRAMES / 2;
  const frames = bare([]);
  for (let at = 0; at < places.length; at++) {
    if (places.length > MAX_FRAMES && at >= half && at < places.length - half) continue;
    const { file, own, line, called } = places[at];
    const text = slice(trim(lineOf(file, line)), 0, MAX_TEXT_CHARS);
    frames[frames.length] = bare({ file: own, line, function: slice(called, 0, MAX_TEXT_CHARS), text });
  }
  return frames;
}

function lineOf(name, line) {
  try {
    if (name === file) return split(source, LINE_END)[line - 1] ?? '';
    const found = statSync(name);
    if (!found.isFile() || found.size > MAX_SHOWN_FILE_BYTES) return '';
    return split(readFileSync(name, 'utf8'), LINE_END)[line - 1] ?? '';
  } catch {
    return '';
  }
}

/** Of an error that node reports without a place, as those of ES modules are; by another parser, which reads TypeScript too
 * and thus may find nothing. */
function syntaxErrorLine(error) {
  if (!(error instanceof SyntaxError) || exec(/\n +at /, replace(`${error.stack}`, OUR_FRAMES, ''))) return null;
  const { emitWarning } = process;
  process.emitWarning = () => {}; // that stripping is experimental is no news to a program
  try {
    stripTypeScriptTypes(source);
  } catch (found) {
    const line = exec(/^:(\d+)\n/, `${found.stack}`);
    return line && Number(line[1]);
  } finally {
    process.emitWarning = emitWarning;
  }
  return null;
}

/** Compile and run the program as node runs a main file. Returns a promise only where it is an ES module that awaits at
 * its top level, which is not to be had at once. */
function start(module, text) {
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  if (meta.is_file) Module._cache[file] = module; // so that files which load it get the one that runs
  const kind = exec(/\.([cm])[jt]s$/, file)?.[1];
  try {
    module._compile(text, file, kind && (kind === 'm' ? 'module' : 'commonjs'));
  } catch (error) {
    // Another file than ours is one that the program tried to load; it has run then, and must not run twice.
    if (error?.code !== 'ERR_REQUIRE_ASYNC_MODULE' || indexOf(error.message, `Requiring ${file} `) < 0) throw error;
    return importAgain();
  }
}

/** The module is known to node already, compiled but not run; only its place is looked at again. */
function importAgain() {
  try {
    writeFileSync(file, source, { flag: 'wx' });
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  }
  return import(pathToFileURL(file));
}

async function load() {
  let plain;
  defineProperty(globalThis, PLAIN_MAIN, { value: (main) => { plain = main; }, configurable: true });
  const module = new Module(file, null);
  // So that no program takes itself for the main script, and runs what is meant for the command line.
  defineProperty(module, 'parent', { value: new Module(__filename, null), configurable: true, writable: true });
  const exports = await startWithMain(module);
  deleteProperty(globalThis, PLAIN_MAIN);
  return typeof exports === 'function' ? exports : exports?.main ?? exports?.default ?? plain;
}

async function startWithMain(module) {
  try {
    return (await start(module, source + EXPORT_MAIN)) ?? module.exports;
  } catch (error) {
    // What a source lacks at its end is missed in our line, of which its author knows nothing. Nothing has run yet.
    const found = error instanceof SyntaxError && exec(SYNTAX, `${error.stack}`);
    if (!found || ROOT + found[2] !== file || Number(found[3]) <= split(source, LINE_END).length) throw error;
  }
  return (await start(module, source)) ?? module.exports;
}

async function callMain() {
  try {
    const main = await load();
    if (typeof main !== 'function') throw new ProgramFailed('the program defines no function named main');
    // By the engine, so that no stack that the program sees or prints has us at its end.
    then(then(resolve(parse(args)), main), succeed, fail);
  } catch (error) {
    fail(error);
  }
}

function succeed(value) {
  if (isPromise(value)) { // where the program has replaced `then`, which is what promises are known by
    then(value, succeed, fail);
    return;
  }
  let text;
  try {
    text = encodeResult(value);
  } catch (error) {
    fail(error);
    return;
  }
  finish(text, process.exitCode ?? 0);
}

function runScript() {
  const module = new Module('.', null);
  process.mainModule = module;
  const running = start(module, source);
  if (running === undefined) return;
  // As node does, where nothing is left that could bring about what the top level awaits.
  const unsettled = () => {
    process.exitCode ??= UNSETTLED_EXIT;
    try {
      writeAll(2, encode('Warning: Detected unsettled top-level await\n'));
    } catch {
      // The program closed its stderr.
    }
  };
  process.once('beforeExit', unsettled);
  running.finally(() => process.off('beforeExit', unsettled));
}

/** What node does with an exception that nobody caught: the program's handlers have their say first, and only where it
 * would print the exception and end, we report it and end. */
const handleException = process._fatalException;
process._fatalException = (error, fromPromise) => {
  let code = 1;
  try {
    if (handleException(error, fromPromise)) return true;
    code = process.exitCode ?? code;
  } catch (inner) {
    error = inner;
    code = HANDLER_FAILED_EXIT;
  }
  reportFailure(error);
  conclude(null, code);
  return false;
};

const program = readProgram();
if (program.length === 0) reallyExit(0);
const headEnd = 4 + program.readUInt32BE(0);
const meta = parse(program.toString('utf8', 4, headEnd));
const source = program.toString('utf8', headEnd, headEnd + meta.source_bytes).replace(/^\uFEFF/, '');
const args = program.toString('utf8', headEnd + meta.source_bytes);
const ROOT = `${process.cwd()}/`;
const file = ROOT + meta.source_name;
const PLACE = `(file://)?${ROOT.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')}([^:\\n]+):(\\d+)`;
const FRAME = new RegExp(`^ +at (?:async )?(?:(.*?) \\()?${PLACE}:\\d+\\)?$`);
const SYNTAX = new RegExp(`^${PLACE}\\n`);
Object.assign(process.env, meta.env);
process.argv = [process.argv[0], meta.call_main ? __filename : file, ...meta.args];

if (meta.call_main) {
  process.once('beforeExit', () => {
    fail(new ProgramFailed('main returned a promise that never settles, and nothing is left to wait for'));
  });
  callMain();
} else {
  runScript();
}
