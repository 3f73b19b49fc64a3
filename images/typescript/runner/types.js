'use strict';
// Loaded before the bootstrap of nodejs: sources that end in .ts, .mts or .cts lose their types before they are
// compiled. Types become blanks, so lines and columns of errors stay those of the author. Types are not checked.
const Module = require('node:module');

const { emitWarning } = process;
process.emitWarning = () => {}; // that stripping is experimental is no news to a program
const { stripTypeScriptTypes } = Module;
// The first call loads the parser, which is better done while the process is parked than in a run.
stripTypeScriptTypes('let one: number = 1;');
process.emitWarning = emitWarning;

/** What the bootstrap appends is JavaScript already, and no author should read of it in a syntax error. */
const APPENDED = "\n;if (typeof module === 'object'";

function strip(source, file) {
  const at = source.lastIndexOf(APPENDED);
  const end = at < 0 ? source.length : at;
  try {
    return stripTypeScriptTypes(source.slice(0, end)) + source.slice(end);
  } catch (error) {
    // The parser knows no file name and begins with the line alone.
    if (/^:\d/.test(error.stack)) error.stack = file + error.stack;
    throw error;
  }
}

const TYPED = /\.[cm]?ts$/;
const { _compile } = Module.prototype;
Module.prototype._compile = function compile(source, file, ...more) {
  return _compile.call(this, typeof file === 'string' && TYPED.test(file) ? strip(source, file) : source, file, ...more);
};
