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
const { pathToFileURL } = require('url');
const { inspect } = require('util');

const RESULT_FD = 3;
const PROGRAM_FD = 4;
const LINGER_MS = 250;
const MAX_TRACE_CHARS = 64 * 1024;
const MAX_MESSAGE_CHARS = 4000;

const { writeSync, readSync, closeSync, writeFileSync } = fs;
const { stringify, parse } = JSON;
const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
const emit = process.emit.bind(process);
const reallyExit = process.reallyExit.bind(process);
const BytesArray = Uint8Array;
const replace = Function.prototype.call.bind(String.prototype.replace);
const slice = Function.prototype.call.bind(String.prototype.slice);
const exec = Function.prototype.call.bind(RegExp.prototype.exec);
const setBytes = Function.prototype.call.bind(Uint8Array.prototype.set);
const { wait } = Atomics;
const NEVER = new Int32Array(new SharedArrayBuffer(4));
const subarray = Function.prototype.call.bind(Uint8Array.prototype.subarray);

// Node queues what a full pipe does not take: lost when the program ends, and a flood would fill memory instead of
// meeting the output limit.
for (const stream of [process.stdout, process.stderr]) stream._handle?.setBlocking?.(true);

// Only the program's own frames are news to its author.
const OUR_FRAMES = /\n +at [^\n]*(?:\/opt\/sandbox\/runner\/|node:internal\/)[^\n]*/g;
// Lets a plain `function main` be found; a newline first, so that no comment of the program can swallow it.
const EXPORT_MAIN = "\n;if (typeof module === 'object' && typeof main === 'function' && module.exports " +
  "&& typeof module.exports.main !== 'function') { try { module.exports.main = main; } catch {} }";

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

/** End as the interpreter would: run exit handlers, then report in one go. */
function finish(kind, text, code) {
  try {
    emit('exit', code);
  } catch (error) {
    if (kind === 'R') {
      [kind, text, code] = failure(error);
    }
  }
  const first = message(kind, text);
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

function failure(error) {
  let trace;
  let name = 'Error';
  let text = '';
  let line = null;
  try {
    trace = error instanceof ProgramFailed ? error.message : replace(inspect(error), OUR_FRAMES, '');
    if (trace.length > MAX_TRACE_CHARS) trace = `${slice(trace, 0, MAX_TRACE_CHARS)}\n... (traceback truncated)`;
    if (error instanceof Error) {
      if (!(error instanceof ProgramFailed)) name = `${error.name}`;
      text = slice(`${error.message}`, 0, MAX_MESSAGE_CHARS);
      const at = exec(LINE, `${error.stack}`);
      if (at) line = Number(at[1]);
    } else {
      text = slice(trace, 0, MAX_MESSAGE_CHARS);
    }
  } catch {
    trace = 'Uncaught exception (it cannot be shown)';
  }
  try {
    writeAll(2, encode(`${trace}\n`));
  } catch {
    // The program closed its stderr.
  }
  return ['E', stringify({ type: slice(name, 0, 200), message: text, line, is_memory: false }), 1];
}

async function load(source, file) {
  const module = new Module(file, null);
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  try {
    module._compile(source + EXPORT_MAIN, file);
  } catch (error) {
    // Node reads ES modules here too, except those that await at their top level.
    if (error?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
    const moduleFile = file.replace(/\.[cm]?([jt])s$/, '.m$1s');
    writeFileSync(moduleFile, source);
    const namespace = await import(pathToFileURL(moduleFile));
    return namespace.main ?? namespace.default;
  }
  const { exports } = module;
  return typeof exports === 'function' ? exports : exports?.main ?? exports?.default;
}

async function callMain(source, file, args) {
  try {
    const main = await load(source, file);
    if (typeof main !== 'function') throw new ProgramFailed('the program defines no function named main');
    const text = encodeResult(await main(parse(args)));
    finish('R', text, process.exitCode ?? 0);
  } catch (error) {
    finish(...failure(error));
  }
}

const program = readProgram();
if (program.length === 0) reallyExit(0);
const start = 4 + program.readUInt32BE(0);
const meta = parse(program.toString('utf8', 4, start));
const source = program.toString('utf8', start, start + meta.source_bytes).replace(/^\uFEFF/, '');
const args = program.toString('utf8', start + meta.source_bytes);
const file = path.join(process.cwd(), meta.source_name);
const LINE = new RegExp(`${file.replace(/\.[cm]?[jt]s$/, '').replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}\\.[cm]?[jt]s:(\\d+)`);
Object.assign(process.env, meta.env);
process.argv = [process.argv[0], file, ...meta.args];

if (meta.call_main) {
  process.once('beforeExit', () => {
    finish(...failure(new ProgramFailed('main returned a promise that never settles, and nothing is left to wait for')));
  });
  callMain(source, file, args);
} else {
  const module = new Module('.', null);
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  process.mainModule = module;
  module._compile(source, file);
}
