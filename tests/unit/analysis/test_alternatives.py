"""What an expression may be has alternatives: none is forgotten, however many harmless ones stand before it."""

from __future__ import annotations

import time

import pytest

from sandbox_svc.analysis import AnalysisMode, SourceAnalyser

ANALYSER = SourceAnalyser(AnalysisMode.STANDARD)

_START = "import functools, importlib, operator, os, random\nq = random.random()\n"
_LETTERS = "".join(f"v{i} = 'x' if q > 2 else '{letter}'\n" for i, letter in enumerate("subprocess"))
_NAMES = [f"v{i}" for i in range(10)]
_FIELDS = "".join(f"{{{name}}}" for name in _NAMES)

# What stands before, and an expression that gives the name of a module.
MODULES = {
    "a sum": (_LETTERS, " + ".join(_NAMES)),
    "a sum that begins the same": (_LETTERS, "'s' + " + " + ".join(_NAMES[1:])),
    "a joined list": (_LETTERS, f"''.join([{', '.join(_NAMES)}])"),
    "an f-string": (_LETTERS, f"f'{_FIELDS}'"),
    "a format with %": (_LETTERS, f"'{'%s' * 10}' % ({', '.join(_NAMES)})"),
    "a format": (_LETTERS, f"'{'{}' * 10}'.format({', '.join(_NAMES)})"),
    "many returns": (
        "def f(k):\n" + "".join(f"  if k == {i}: return 'json'\n" for i in range(80)) + "  return 'subprocess'\n",
        "f(q)",
    ),
    "many operands": (f"k = {' or '.join([repr('json')] * 70)} or 'subprocess'", "k"),
    "a method of something unknown": ("a = 'json' if q > 2 else input()", "a.lower()"),
    "an argument": ("a = 'json' if q > 2 else 'subprocess'", "'x'.replace('x', a)"),
    "an argument that is not known": ("a = 'json' if q > 2 else input()", "'x'.replace('x', a)"),
    "a function of something unknown": ("a = 'json' if q > 2 else input()", "str(a)"),
    "a separator": ("a = 'x' if q > 2 else 'b'", "a.join(['su', 'process'])"),
    "lists": ("a = ['a'] if q > 1 else ['b'] if q > 2 else ['c'] if q > 3 else ['d'] if q > 4 else b", "''.join(a)"),
    "a table to translate with": ("t = {120: 'json'} if q > 2 else {120: 'subprocess'}", "'x'.translate(t)"),
    "an entry to translate with": ("t = {120: 'json' if q > 2 else 'subprocess'}", "'x'.translate(t)"),
    "a comprehension over lists": ("t = ['json'] if q > 2 else ['subprocess']", "[m for m in t][0]"),
    "a comprehension": ("k = 'json' if q > 2 else 'subprocess'", "[k for m in 'a'][0]"),
    "a loop": ("k = 'j' if q > 2 else 's'\ns = ''\nfor c in 'subprocess': s = s + (k if c == 's' else c)", "s"),
    "a sign": ("k = 1 if q > 2 else 2", "['json', 'subprocess', 'math'][-k]"),
    "bounds of a slice": ("k = 10 if q > 2 else 0\ne = 14 if q > 2 else 10", "'subprocessjson'[k:e]"),
    "a key that is not known": ("t = {'a': 'json', input(): 'subprocess', 'b': 'x'}", "t['b']"),
    "a default": ("t = {'a': 'json'}", "t.get('a' if q > 2 else 'b', 'subprocess')"),
    "places after a list in a list": ("e = []\nt = [*e, 'json', 'subprocess']", "t[1]"),
    "a zipped list that is not known": (
        "a = ['json'] if q > 2 else input()\nfor m, _ in zip(a, [1]):\n  pass",
        "m",
    ),
    "a start of numbers": (
        "s = 0 if q > 2 else 1\nt = ['json', 'subprocess', 'subprocess']\nfor i, _ in enumerate([1], s):\n  pass",
        "t[i]",
    ),
    "a mapped function": ("f = (lambda x: 'json') if q > 2 else (lambda x: 'subprocess')", "list(map(f, 'a'))[0]"),
    "a filter": ("f = (lambda x: 1) if q > 2 else (lambda x: len(x) > 4)", "[*filter(f, ['json', 'subprocess'])][0]"),
    "an order": ("", "sorted(['json', 'subprocess'], reverse=True)[0]"),
    "no order": ("", "list({'json', 'subprocess'})[0]"),
    "what may not be yielded": ("def g():\n  if q > 2: yield 'json'\n  yield 'subprocess'", "list(g())[0]"),
    "arguments that are unpacked": ("def f(n='json'): return n\nk = f(**{'n': 'subprocess'})", "k"),
    "the width of a field": ("", "f\"{'subprocessx':.10}\""),
    "a walk in a field": ("", "'subproce{a[0]}s'.format(a='s')"),
    "a slice of what is known in part": ("x = input()", "('json' + x + 'math')[5:-4]"),
    "a part of what is known in part": ("x = input()", "('x' + x + ',json').split(',')[1]"),
    "the beginning of a name": ("", "'s' + input()"),
    "an appended name": ("t = ['json']\nt.append('subprocess')", "t[-1]"),
    "a name put first": ("t = ['json']\nt.insert(0, 'subprocess')", "t[0]"),
    "an entry set later": ("t = {'a': 'json'}\nt['a'] = 'subprocess'", "t['a']"),
    "an updated entry": ("t = {'a': 'json'}\nt.update(a='subprocess')", "t['a']"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_behind_harmless_alternatives_is_seen(name: str) -> None:
    """The first alternative was taken, or the first few; the name that was meant was not among them."""
    before, module = MODULES[name]
    for load in (f"importlib.import_module({module})", f"__import__({module})"):
        source = f"{_START}{before}\n{load}.run(['id'])\n"
        assert ANALYSER.analyse("python", source.encode()).findings


@pytest.mark.parametrize(
    "source",
    [
        "getattr(os, v0 + v1 + v2 + v3 + v4 + v5)('id')",
        "getattr(os, f'{input()}{input()}')('id')",
        "getattr(os, 'sys' + input())('id')",
        "vars(os)['sys' + input()]('id')",
        "operator.attrgetter('name' if q > 2 else 'system')(os)('id')",
        "functools.reduce(getattr, ['name'] if q > 2 else ['system'], os)('id')",
        "functools.reduce(getattr, input().split(), os)('id')",
        "def f(): pass\ntype(1 if q > 2 else f)(compile(input(), '', 'exec'), {})()",
        "import timeit\ntimeit.timeit('1' if q > 2 else '__import__(\"os\").system(\"id\")')",
        "open('/usr/lib/x', 'r' if q > 2 else 'w')",
        "open(os.path.join('/etc', 'hosts' if q > 2 else 'passwd'))",
        "open(f\"/etc/{'hosts' if q > 2 else 'passwd'}\")",
        "from pathlib import Path\nPath('/etc', 'hosts' if q > 2 else 'passwd').read_text()",
        "from pathlib import Path\nPath('/etc').joinpath('hosts' if q > 2 else 'passwd').read_text()",
    ],
)
def test_a_use_behind_harmless_alternatives_is_seen(source: str) -> None:
    letters = "".join(f"v{i} = 'x' if q > 2 else '{letter}'\n" for i, letter in enumerate("system"))
    assert ANALYSER.analyse("python", f"{_START}{letters}{source}\n".encode()).findings


@pytest.mark.parametrize(
    "source",
    [
        "const m = q ? 'at' : 'slice'; require('child_process'[m](0))",
        "const p = 'process', s = q ? 'x' : '_'; require(['child', p].join(s))",
        "require(JSON.parse(q ? '[\"fs\"]' : f())[0])",
        "const p = 'child_process', x = 'fs'; require([x].concat([p])[1])",
        "for (const v of new Set(q ? ['fs'] : f())) require(v)",
        "const t = new Map([['fs', 'child_process']]); for (const [k, v] of t.entries()) require(v)",
        "const fs = require('fs'); fs.readFileSync(...(q ? ['x'] : ['/etc/passwd']))",
        "const fs = require('fs'); fs.readFileSync.apply(fs, q ? ['x'] : ['/etc/passwd'])",
        "const t = ['child_process', 'fs'], k = q ? -1 : -0; require(t[-k])",
        "require([...(q ? ['fs'] : ['child_process'])][0])",
        "require.apply(null, q ? ['fs'] : f())",
        "const t = { m: 'fs', [f()]: 'child_process' }; require(t.m)",
        "const { [q ? 'title' : 'binding']: b } = process; b('fs')",
        "process['bin' + f()]('fs')",
        "require('node:' + f())",
        "import(`child_${f()}`)",
    ],
)
def test_what_javascript_may_mean_besides_is_seen(source: str) -> None:
    assert ANALYSER.analyse("javascript", f"const q = Math.random() > 2; {source}".encode()).findings


HONEST = {
    "python: nine modules": """
import importlib
for name in ["json", "csv", "math", "cmath", "string", "random", "os", "types", "re"]:
    importlib.import_module(name.strip())
    importlib.import_module("package." + name)
""",
    "python: a table that is filled": """
import importlib
READERS = {"json": "json"}
READERS["csv"] = "csv"
READERS.update(a="math")
def load(kind):
    return importlib.import_module(READERS[kind]) if kind in READERS else None
load("csv")
""",
    "python: a list that is filled": """
import importlib
names = ["numpy"]
names.append("scipy")
names.sort()
for name in names:
    importlib.import_module(name)
""",
    "python: methods by event": """
class Handler:
    def on_start(self): return 1
    def run(self, event): return getattr(self, f"on_{event}")()
Handler().run("start")
""",
    "python: constants by name": """
import signal, socket
print(getattr(signal, "SIG" + input()), getattr(socket, f"AF_{input()}"))
""",
    "python: a path by arguments": """
import os, sys
path = os.path.join(sys.argv[1] if len(sys.argv) > 1 else "data", f"{sys.argv[0]}.txt")
open(path, "w" if path else "a")
""",
    "javascript: nine modules": """
for (const n of ['fs', 'path', 'url', 'util', 'events', 'zlib', 'os', 'assert', 'stream']) require('node:' + n);
""",
    "javascript: a plugin": """
const plugin = require(`./plugins/${process.argv[2] || 'default'}.js`);
process[`std${plugin.stream}`].write('x');
""",
    "javascript: computed keys": """
const key = process.argv[2] || 'HOME';
const { [key]: value } = process.env;
const table = { [key]: 1, other: value };
console.log(table.other);
""",
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_choice_passes(name: str) -> None:
    """What is chosen of a few known names is known, and so is what cannot be a name that does harm."""
    assert () == ANALYSER.analyse(name.partition(":")[0], HONEST[name].encode()).findings


LISTED = ",".join(f"v{i % 100}" for i in range(1000))
LONG_LISTS = {
    "python": ("v{} = 'a' if q else 'b'\n", f"x = [{LISTED}]\n", "open(str().join(x)); "),
    "javascript": ("const v{} = q ? 'a' : 'b';", f"const x = [{LISTED}];", "open(x.join()); "),
}


@pytest.mark.parametrize("language", LONG_LISTS)
def test_the_work_for_alternatives_of_long_lists_is_bounded(language: str) -> None:
    """Rows are as many as the alternatives of one element, and each costs its length. Past the bound, four times as many
    uses cost little more than to read them; each would cost the same if joining were free of charge."""
    letter, listed, use = LONG_LISTS[language]
    head = "".join(letter.format(i) for i in range(100)) + listed

    def seconds(uses: int) -> float:
        started = time.process_time()
        ANALYSER.analyse(language, (head + use * uses).encode())
        return time.process_time() - started

    assert min(seconds(4000) for _ in range(2)) < 2.5 * seconds(1000)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('import subprocess as p\nprint(p.PIPE)\np = p.run(["ls"])', 3),
        ('import subprocess as p\np = p.run(["ls"])\nprint(p.stdout)', 2),
        ('import os\nm = os\nx = m.listdir()\nm = m.system("ls")', 4),
        ("import socket as s\nprint(s.gethostname())\ns = s.socket()", 3),
        ('import ctypes as c\nprint(c.sizeof)\nc = c.CDLL("libc.so.6")', 3),
    ],
)
def test_a_name_that_is_given_anew_from_itself_was_something_before(source: str, line: int) -> None:
    """What came of asking for it in the middle of its own working out was remembered for good."""
    assert ANALYSER.analyse("python", source.encode()).findings[0].line == line


def test_classes_of_a_program_may_be_walked_by_itself() -> None:
    source = (
        "class A: pass\n"
        "def f(cls): return cls.__subclasses__() + [g for s in cls.__subclasses__() for g in f(s)]\n"
        "print(f(A))"
    )
    assert ANALYSER.analyse("python", source.encode()).findings == ()
