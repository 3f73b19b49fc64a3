"""The rules for JavaScript, as data. A new one is an entry here, a row in docs/analysis.md, a snippet in the corpus."""

from __future__ import annotations

from typing import Final

from sandbox_svc.analysis.common_rules import COMMON_RULES
from sandbox_svc.analysis.rules import Rule

DYNAMIC_CODE: Final = "js-dynamic-code"
FUNCTION: Final = "js-function-constructor"
DYNAMIC_IMPORT: Final = "js-dynamic-import"
DYNAMIC_ATTRIBUTE: Final = "js-dynamic-attribute"
LOADER: Final = "js-loader"
NATIVE: Final = "js-native"
INTERNALS: Final = "js-internals"
PROCESS_CONTROL: Final = "js-process-control"
ENVIRONMENT_SENT: Final = "js-environment-sent"

JAVASCRIPT_RULES: Final = (
    Rule(
        id="js-process",
        language="javascript",
        level="standard",
        sentence="{name} starts other processes",
        names=(
            "node:cluster.fork",
            "node:cluster.setupPrimary",
            "node:cluster.setupMaster",
            "process.execve",
            "npm:open",
        ),
        modules=(
            "node:child_process",
            "npm:execa",
            "npm:cross-spawn",
            "npm:shelljs",
            "npm:zx",
            "npm:node-pty",
            "npm:sudo-prompt",
            "npm:child-process-promise",
            "npm:node-cmd",
            "npm:pidusage",
        ),
    ),
    Rule(
        id=PROCESS_CONTROL,
        language="javascript",
        level="standard",
        sentence="{name} reaches for other processes or for the rights of this one",
        calls=("process.kill", "process._kill"),
        names=(
            "process.setuid",
            "process.setgid",
            "process.seteuid",
            "process.setegid",
            "process.setgroups",
            "process.initgroups",
            "process._debugProcess",
            "process._debugEnd",
        ),
        checks=(
            "`process.kill(process.pid, ...)`, the program's own process, is let through; a mode with the set-uid bit "
            "is not."
        ),
    ),
    Rule(
        id="js-socket",
        language="javascript",
        level="standard",
        sentence="{name} opens a raw socket",
        names=(
            "node:net.connect",
            "node:net.createConnection",
            "node:net.createServer",
            "node:net.Socket",
            "node:net.Server",
            "node:net.Stream",
            "node:dgram.createSocket",
            "node:dgram.Socket",
            "node:tls.connect",
            "node:tls.createServer",
            "node:tls.TLSSocket",
        ),
    ),
    Rule(
        id="js-engine",
        language="javascript",
        level="standard",
        sentence="{name} speaks to the container engine or its orchestrator",
        modules=("npm:dockerode", "npm:docker-modem", "npm:@kubernetes/client-node", "npm:node-docker-api"),
    ),
    Rule(
        id=NATIVE,
        language="javascript",
        level="standard",
        sentence="{name} reaches native code",
        names=("process.binding", "process._linkedBinding", "process.dlopen", "internalBinding"),
        modules=(
            "node:wasi",
            "npm:ffi-napi",
            "npm:ref-napi",
            "npm:koffi",
            "npm:ffi",
            "npm:bindings",
            "npm:node-gyp-build",
        ),
        attributes=("_linkedBinding",),
        checks="Requiring a `.node` file.",
    ),
    Rule(
        id=DYNAMIC_CODE,
        language="javascript",
        level="standard",
        sentence="{name} runs code that is not in the program's text",
        names=("eval", "globalThis.eval", "Script.runInThisContext"),
        modules=("node:vm", "node:repl", "node:inspector", "npm:vm2", "npm:isolated-vm", "npm:safe-eval", "npm:eval"),
        attributes=("runInThisContext", "runInNewContext"),
        checks=(
            "`eval` of a text that stands in the program is judged by that text, under the strict rules. `setTimeout` "
            "and its kind with a text; `new Worker` of a blob or a `data:` address, or with `eval: true` unless its "
            "text stands in the program and is clean; `import` of a `data:` address."
        ),
    ),
    Rule(
        id=FUNCTION,
        language="javascript",
        level="standard",
        sentence="{name} is the Function constructor, which runs code that is not in the program's text",
        checks=(
            "`Function` in any spelling that is more than a type test: called, returned, handed to what calls it, "
            "extended; `x.constructor.constructor`, `(() => {}).constructor`, `Object.getPrototypeOf(async function () "
            "{}).constructor`, and a call of what `x.constructor(...)` returns."
        ),
    ),
    Rule(
        id=DYNAMIC_IMPORT,
        language="javascript",
        level="standard",
        sentence="{name} loads a module that is chosen at run time",
        checks=(
            "`require(...)` and `import(...)` with a name that the analysis cannot work out, and `require` handed on "
            "as a value."
        ),
    ),
    Rule(
        id=DYNAMIC_ATTRIBUTE,
        language="javascript",
        level="standard",
        sentence="{name} is looked up by a name that is chosen at run time",
        checks=(
            "`process[...]` and `module[...]`, and a call of `globalThis[...]`, with a name that the analysis cannot "
            "work out."
        ),
    ),
    Rule(
        id=LOADER,
        language="javascript",
        level="standard",
        sentence="{name} reaches Node's module loader",
        names=(
            "module.require",
            "module.load",
            "module._compile",
            "module.children",
            "module.parent.*",
            "node:module",
            "node:module.*",
            "require.cache",
            "require.extensions",
            "require.main.children",
            "process.mainModule",
            "process.mainModule.*",
            "process.getBuiltinModule",
        ),
        unless=(
            "node:module.builtinModules",
            "node:module.builtinModules.*",
            "node:module.isBuiltin",
            "node:module.enableCompileCache",
            "module.parent.filename",
            "module.parent.id",
        ),
        attributes=("mainModule", "getBuiltinModule"),
    ),
    Rule(
        id=INTERNALS,
        language="javascript",
        level="standard",
        sentence="{name} leads into the interpreter's internals",
        names=(
            "arguments.callee.caller",
            "arguments.callee.caller.*",
            "Error.prepareStackTrace",
            "process._getActiveHandles",
            "process._getActiveRequests",
            "process._tickCallback",
            "node:v8.setFlagsFromString",
            "node:v8.startupSnapshot.*",
            "node:async_hooks.createHook",
        ),
    ),
    Rule(
        id=ENVIRONMENT_SENT,
        language="javascript",
        level="standard",
        sentence="{name} sends the whole environment over the network",
        checks=(
            "`process.env` as a whole among the arguments of a network function, or all of it one by one; variables "
            "that are picked by name are let through."
        ),
    ),
    Rule(
        id="js-strict-module",
        language="javascript",
        level="strict",
        sentence="module {name} is not allowed here",
        modules=(
            "node:fs",
            "node:fs/promises",
            "node:worker_threads",
            "node:cluster",
            "node:net",
            "node:dgram",
            "node:tls",
            "node:module",
            "node:v8",
        ),
        checks="`child_process`, `fs`, `worker_threads` and others that reach the system, in any spelling.",
    ),
    Rule(
        id="js-strict-call",
        language="javascript",
        level="strict",
        sentence="{name} is not allowed here",
        names=(
            "Function",
            "eval",
            "globalThis.eval",
            "process.*",
            "require.*",
            "globalThis.process",
            "WebAssembly.*",
            "SharedArrayBuffer",
        ),
        unless=(
            "process.env",
            "process.env.*",
            "process.argv",
            "process.argv.*",
            "process.memoryUsage",
            "process.hrtime",
            "process.hrtime.*",
            "process.uptime",
            "process.version",
            "process.versions",
            "process.versions.*",
            "process.platform",
            "process.arch",
            "process.pid",
            "process.nextTick",
            "process.stdout",
            "process.stdout.*",
            "process.stderr",
            "process.stderr.*",
            "process.cwd",
            "process.exit",
            "process.exitCode",
            "process.on",
            "process.once",
            "process.cpuUsage",
            "process.emitWarning",
            "require.main",
            "require.resolve",
        ),
    ),
    *COMMON_RULES,
)
