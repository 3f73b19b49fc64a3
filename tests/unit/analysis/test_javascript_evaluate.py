"""Small functions and loops are worked out as JavaScript does it, or not at all, and at a bounded cost."""

from __future__ import annotations

import time

import pytest

from sandbox_svc.analysis import Analysis, AnalysisMode, SourceAnalyser
from sandbox_svc.analysis.analyser import Budget
from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import ProgramIndex
from sandbox_svc.analysis.javascript.tree import identifier, parse
from sandbox_svc.analysis.javascript.values import Const, Unknown

ANALYSER = SourceAnalyser(AnalysisMode.STANDARD)


def values(source: str) -> list[object]:
    """Return what `x` may hold at the end of the source; None stands for anything."""
    root = parse(source.encode(), max_seconds=1, max_nodes=10_000)
    last = [node for node in root.walk() if node.type == "identifier" and identifier(node) == "x"][-1]
    found = Resolver(ProgramIndex(root), max_steps=100_000).resolve(last)
    return [
        value.value if isinstance(value, Const) else None if isinstance(value, Unknown) else value for value in found
    ]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[2, 3].map((n) => n * 2 + 1).join('')", "57"),
        ("[3, 1].map((n, i) => n + i)", (3, 2)),
        ("[..'ab'].map((c) => c)", None),
        ("[...'ab'].map((c) => c.charCodeAt(0)).filter((n) => n > 97)", (98,)),
        ("['a', 'b', 'c'].reduce((all, c) => c + all, '')", "cba"),
        ("['a', 'b'].reduceRight((all, c) => all + c)", "ba"),
        ("Array.from('abc', (c) => c.toUpperCase()).join('')", "ABC"),
        ("Array.from({ length: 3 }, (_, i) => 'cab'[i]).join('')", "cab"),
        ("'a-b_c'.split(/[-_]/).join('')", "abc"),
        ("'x1y22'.replace(/\\d+/g, (n) => `<${n}>`)", "x<1>y<22>"),
        ("'abc'.replace(/b/, '')", "ac"),
        ("'a1b2'.match(/\\d/g).join('')", "12"),
        ("'7'.padStart(3, '0')", "007"),
        ("(35).toString(36) + parseInt('z', 36)", "z35"),
        ("Buffer.from('6162', 'hex').map((b) => b ^ 3).toString()", "ba"),
        ("new TextDecoder().decode(new Uint8Array([104, 105]))", "hi"),
        ("require('zlib').inflateSync(Buffer.from('eJxLTEoGAAJNASc=', 'base64')).toString()", "abc"),
        ("Object.keys({ b: 1, a: 2 }).join('')", "ba"),
        ("Object.entries({ a: 'x', b: 'y' }).map(([k, v]) => k + v).join('')", "axby"),
        ("(() => { let s = ''; for (let i = 0; i < 3; i++) { if (i === 1) continue; s += i; } return s; })()", "02"),
        ("(() => { let i = 5, s = ''; while (true) { if (i-- < 3) break; s += i; } return s; })()", "432"),
        ("(() => { let i = 0; do { i++; } while (i < 4); return 'n' + i; })()", "n4"),
        ("(() => { let a = 'p', b = 'q'; [a, b] = [b, a]; return a + b; })()", "qp"),
        ("(() => { const m = { a: 'z' }; m.b = 'y'; return [...'ab'].map((c) => m[c]).join(''); })()", "zy"),
        ("(({ a, b = 'd' }, [c], ...rest) => a + b + c + rest.length)({ a: 'x' }, ['y'], 1, 2)", "xdy2"),
        ("(function f(n) { return n ? n + f(n - 1) : ''; })(3)", "321"),
        ("JSON.parse('[\"a\",\"b\"]').join('')", "ab"),
        ("String.raw`a`", "a"),
        ("require('util').format('%s-%d', 'a', 7, 'b')", "a-7 b"),
        ("new URL('/b', 'http://a').pathname", "/b"),
        ("String(-5 % 3)", "-2"),
        ("String(7 / 2)", "3.5"),
        ("String('10' * '2')", "20"),
    ],
)
def test_what_an_expression_gives_is_known(expression: str, value: object):
    """As Node answers it; None: it is not followed."""
    found = values(f"const x = ({expression});\nx;\n")
    assert value in found
    assert value is None or len(found) == 1


@pytest.mark.parametrize(
    "source",
    [
        "let x = ''; for (const c of 'abc') x = c + x; x;",
        "let x = ''; for (const c of ['c', 'b', 'a']) { x += c; } x;",
        "const parts = ['b']; parts.push('a'); parts.unshift('c'); const x = parts.join(''); x;",
        "const parts = []; parts[0] = 'cb'; parts[1] = 'a'; const x = parts.join(''); x;",
        "let x = 'c'; function add(c) { x += c; } later(); ['b', 'a'].forEach(add); x;",
        "function main() { const out = []; let i = 3; while (i--) out.push('abc'[i]); const x = out.join(''); x; }",
    ],
)
def test_what_is_put_together_step_by_step_is_known(source: str):
    """Statements are followed in their order; as long as a name changes, it may be something else too."""
    assert {"cba", None} <= set(values(source))


@pytest.mark.parametrize(
    "source",
    [
        "function main({ key }) { require([111].map((c) => String.fromCharCode(c ^ key)).join('')); }",
        "let name = 'fs'; name = change(name); require(name);",
        "const parts = ['fs']; other(parts); parts.push(more()); require(parts.join(''));",
        "let name = 'f'; while (ready()) name += 's'; require(name);",
        "const name = 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa'.replace(/(a+)+$/, ''); require(name);",
    ],
)
def test_a_name_that_cannot_be_worked_out_is_not_taken_for_another(source: str):
    """A wrong guess would let pass what an honest "unknown" refuses."""
    assert ["js-dynamic-import"] == [f.rule for f in ANALYSER.analyse("javascript", source.encode()).findings]


EXPENSIVE = {
    "endless loops": b"".join(b"let s%d = ''; while (true) s%d += 'a'; require(s%d);" % (i, i, i) for i in range(2000)),
    "loops in functions": b"".join(
        b"function f%d() { let s = ''; for (let i = 0; i < 99999; i++) s += 'ab'; return s; }\n" % i
        for i in range(4000)
    ),
    "recursion": b"const f = (n) => (n < 2 ? n : f(n - 1) + f(n - 2));" + b"f(25);" * 500,
    "blocks in blocks": b"{ let a = 0; a++;" * 8000,
    "chains": b"x" + b".slice(1)" * 8000 + b"; 'abc'" + b".slice(0)" * 8000,
    "growing lists": b"let a = [1]; for (const i of 'abcdefgh') a = a.concat(a);" * 1000,
    "growing texts": b"let s = 'a'; for (const c of 'abcdefgh'.repeat(99)) s = s + s + c;" * 1000,
    "backtracking": b"'%s'.replace(/a?a?a?a?a+b/g, '');" % (b"a" * 400) * 500
    + b"'%s'.split(/(a|a)(a|a)(a|a)(a|a)c/);" % (b"a" * 400) * 500,
    "callbacks of callbacks": b"let a = [1];" + b"a = a.map((x) => a.map((y) => a.map((z) => z)));" * 2000,
    "spreads": b"a0 = [f, g];"
    + b"".join(b"a%d = [...a%d, ...a%d];" % (i, i - 1, i - 1) for i in range(1, 200))
    + b"h(...a199);",
    "functions handed about": b"function f(a) { return a; }" + b"g(f); f.call(x, 1);" * 8000,
    "functions of functions": b"const f = (a) => (b) => f(b)(a);" + b"f(1)(2);" * 4000,
    "wrapped calls": b"f" + b".call(a)" * 8000 + b";" + b"Reflect.apply(" * 2000 + b"f" + b", x, [1])" * 2000,
    "reductions": b"[a]" + b".reduce((x, y) => x[y], [q])" * 4000,
    "compressed": b"require('zlib').inflateSync(Buffer.from('eJztwTEBAAAAwqD1T20ND6AAAAAAAAAAAAAAAHg3', 'base64'));"
    * 500,
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_working_out_is_bounded(name: str):
    """On the event loop and in a worker: in far less than the processor time that a worker has."""
    for budget, size, seconds in (
        (None, 1024 * 1024, 5.0),
        (Budget(max_steps=10_000, max_parse_seconds=0.005), 2048, 0.5),
    ):
        analyser = SourceAnalyser(AnalysisMode.STRICT, budget=budget) if budget is not None else ANALYSER
        started = time.process_time()
        analyser.analyse("javascript", EXPENSIVE[name][:size])
        assert time.process_time() - started < seconds


def test_a_stack_that_is_nearly_full_is_no_fault():
    """Whoever calls it from deep down gets an answer, be it that the source is too complex."""
    source = b"".join(b"function f%d(x) { return f%d(x + 1) }\n" % (i, i + 1) for i in range(400)) + b"require(f0(1))"

    def analyse(depth: int) -> Analysis:
        return ANALYSER.analyse("javascript", source) if depth == 0 else analyse(depth - 1)

    for depth in (100, 300, 500, 700):
        assert analyse(depth).findings


def test_long_loops_of_an_honest_program_leave_the_rest_to_be_judged():
    """They have a budget of their own: what follows names is not cut short."""
    loops = b"let n = 0; for (let i = 0; i < 1e6; i++) { n += i % 7; n ^= i; }\n" * 300
    assert () == ANALYSER.analyse("javascript", loops).findings
    found = ANALYSER.analyse("javascript", loops + b"require('child_' + 'process');").findings
    assert ["js-process"] == [finding.rule for finding in found]


_LETTERS = "".join(f"const v{i} = Math.random() > 2 ? 'x' : '{letter}';" for i, letter in enumerate("child_process"))
_NAMES = [f"v{i}" for i in range(13)]


def _often(text: str) -> str:
    """The text 80 times, with the number of each in place of `#`."""
    return "".join(text.replace("#", str(number)) for number in range(80))


@pytest.mark.parametrize(
    "source",
    [
        f"{_LETTERS} require({' + '.join(_NAMES)}).exec('id')",
        f"{_LETTERS} require(`{''.join(f'${{{name}}}' for name in _NAMES)}`).exec('id')",
        f"{_LETTERS} require([{', '.join(_NAMES)}].join('')).exec('id')",
        f"for (const name of [{_often('_path_,')} 'child_process']) require(name)".replace("_path_", "'path'"),
        "const load = (name) => require(name);" + _often("load('fs');") + "load('child_process')",
        "const t = {m: 'path'," + _often("k#: 1,") + "m: 'child_process'}; require(t.m)",
        "function name(k) {" + _often("if (k == #) return 'path';") + "return 'child_process'; } require(name(f()))",
    ],
)
def test_what_is_left_out_of_too_many_possibilities_is_not_known(source: str) -> None:
    """Of many texts that a name may be, only the first were tried, and the module that was meant was not among them."""
    assert "js-dynamic-import" in [f.rule for f in ANALYSER.analyse("javascript", source.encode()).findings]
