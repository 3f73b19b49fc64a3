"""What the runner of each language says of a failure, and programs of several files, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sandbox_svc.client import Answer, Client, ErrorDetail
from tests.hostile.harness import Service, running
from tests.integration.conftest import why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]

LANGUAGES = ("python", "nodejs", "typescript", "bash")
NODE = ("nodejs", "typescript")
SUFFIX = {"python": ".py", "nodejs": ".js", "typescript": ".ts", "bash": ".sh"}

OURS = ("/opt/sandbox", "node:internal", "runner.py", "bootstrap.js", "types.js", "typeof module")
"""Nothing of these is any business of a program's author."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(
        tmp_path_factory.mktemp("runners"), "runc", SANDBOX_LANGUAGES=",".join(LANGUAGES), SANDBOX_ANALYSIS="standard"
    ) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{service.port}") as client:
        yield client


def error_of(answer: Answer) -> ErrorDetail:
    assert answer.error is not None, answer
    return answer.error


def value_of(answer: Answer) -> Any:
    return None if answer.result is None else answer.result.value


def frames(answer: Answer) -> list[tuple[str, int, str]]:
    """File, line and text; what functions are called differs between engines."""
    return [(frame.file, frame.line, frame.text) for frame in error_of(answer).traceback]


def run(client: Client, source: str | None, language: str, *, script: bool, **fields: Any) -> Answer:
    """Run it, live and not, and see that both say the same, and nothing of ours."""
    answer = client.run(source, language=language, script=script, **fields)
    texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
    streamed = client.run(
        source, language=language, script=script, on_output=lambda name, text: texts[name].append(text), **fields
    )
    for one in (answer, streamed):
        assert (one.stdout, one.stderr) == ("".join(texts["stdout"]), "".join(texts["stderr"]))
        assert (one.outcome, one.exit_code, one.error) == (answer.outcome, answer.exit_code, answer.error)
        shown = one.stdout + one.stderr + repr(one.error)
        assert not any(word in shown for word in OURS), shown
    return answer


@pytest.mark.parametrize("script", [False, True], ids=["main", "script"])
@pytest.mark.parametrize(
    ("language", "source", "kind", "places"),
    [
        (
            "python",
            "from lib.tools import apply\n\ndef main():\n    apply(int)\n\nif __name__ == '__main__':\n    main()",
            "ValueError",
            [("main.py", 4, "apply(int)"), ("lib/tools.py", 2, "return function('x')")],
        ),
        (
            "nodejs",
            "const { apply } = require('./lib/tools');\n\nfunction main() {\n  apply(JSON.parse);\n}\n\nif (require.main === module) main();",
            "SyntaxError",
            [("main.js", 4, "apply(JSON.parse);"), ("lib/tools.js", 2, "return f('x');")],
        ),
        (
            "typescript",
            "const { apply }: any = require('./lib/tools.ts');\n\nfunction main(): void {\n  apply(JSON.parse);\n}\n\nif (require.main === module) main();",
            "SyntaxError",
            [("main.ts", 4, "apply(JSON.parse);"), ("lib/tools.ts", 2, "return f('x');")],
        ),
        (
            "nodejs",
            "import { apply } from './lib/tools.js';\n\nexport function main() {\n  apply(JSON.parse);\n}\n\nif (process.argv.length > 2) main();",
            "SyntaxError",
            [("main.js", 4, "apply(JSON.parse);"), ("lib/tools.js", 2, "return f('x');")],
        ),
        (
            "nodejs",
            "import { apply } from './lib/tools.js';\nawait null;\nexport function main() {\n  apply(JSON.parse);\n}\n\nif (process.argv.length > 2) main();",
            "SyntaxError",
            [("main.js", 4, "apply(JSON.parse);"), ("lib/tools.js", 2, "return f('x');")],
        ),
        (
            "typescript",
            "import { apply } from './lib/tools.ts';\nawait null;\nexport function main(): void {\n  apply(JSON.parse);\n}\n\nif (process.argv.length > 2) main();",
            "SyntaxError",
            [("main.ts", 4, "apply(JSON.parse);"), ("lib/tools.ts", 2, "return f('x');")],
        ),
    ],
    ids=["python", "nodejs", "typescript", "nodejs-module", "nodejs-await", "typescript-await"],
)  # fmt: skip
def test_a_failure_has_its_place_in_every_file_of_the_program(client, language, source, kind, places, script):
    files = {
        "lib/tools.py": "def apply(function):\n    return function('x')\n",
        "lib/tools.js": "exports.apply = (f) => {\n  return f('x');\n}\n",
        "lib/tools.ts": "exports.apply = (f: Function): any => {\n  return f('x');\n}\n",
    }
    answer = run(client, source, language, script=script, files=files, args=["run"] if script else ())

    assert (answer.outcome, answer.exit_code) == ("program_error", 1), answer
    assert (error_of(answer).type, error_of(answer).line) == (kind, places[0][1])
    expected = [*places] if not script else [(places[0][0], 7, source.splitlines()[6].strip()), *places]
    assert frames(answer) == expected
    assert kind in answer.stderr and f"/workspace/{places[-1][0]}" in answer.stderr


@pytest.mark.parametrize("language", NODE)
@pytest.mark.parametrize(
    ("source", "kind", "line"),
    [
        ("null.x;\n", "TypeError", 1),
        ("1;\nsetTimeout(() => {\n  throw new RangeError('late');\n}, 20);", "RangeError", 3),
        ("Promise.reject(new URIError('forgotten'));\nsetTimeout(() => console.log('never'), 50);", "URIError", 1),
        ("await 1;\nthrow new EvalError('module');", "EvalError", 2),
        ("import fs from 'node:fs';\nthrow new EvalError('module');", "EvalError", 2),
        ("const a = 1;\nconst b = ;", "SyntaxError", 2),
        ("require('node:events').prototype.emit('error', new RangeError('unheard'));", "RangeError", 1),
        ("process.on('exit', (code) => console.log('exit', code));\nnull.x;", "TypeError", 2),
    ],
)
def test_what_no_script_catches_ends_it_with_a_place(client, language, source, kind, line):
    answer = run(client, source, language, script=True)

    assert (answer.outcome, answer.exit_code) == ("program_error", 1), answer
    assert (error_of(answer).type, error_of(answer).line) == (kind, line)
    assert frames(answer)[-1] == (f"main{SUFFIX[language]}", line, source.splitlines()[line - 1].strip())
    assert answer.stdout == ("exit 1\n" if "'exit'" in source else "")


@pytest.mark.parametrize("language", NODE)
def test_what_is_thrown_late_ends_main_too(client, language):
    source = "function main() {\n  return new Promise(() => setTimeout(() => {\n    throw new RangeError('late');\n  }, 20));\n}"
    answer = run(client, source, language, script=False)

    assert (answer.outcome, answer.exit_code, error_of(answer).type) == ("program_error", 1, "RangeError")
    assert frames(answer) == [(f"main{SUFFIX[language]}", 3, "throw new RangeError('late');")]


@pytest.mark.parametrize("language", NODE)
@pytest.mark.parametrize(
    ("source", "code", "stdout", "has_error"),
    [
        ("process.on('uncaughtException', (e) => console.log('mine', e.message));\nsetTimeout(() => null.x);", 0, "mine", False),
        ("process.on('uncaughtException', () => process.exit(9));\nnull.x;", 9, "", False),
        ("process.on('uncaughtException', () => { throw new Error('again'); });\nnull.x;", 7, "", True),
        ("process.on('unhandledRejection', (e) => console.log('mine', e));\nPromise.reject(5);", 0, "mine 5", False),
        ("process.setUncaughtExceptionCaptureCallback((e) => console.log('mine', e.name));\nsetTimeout(() => null.x);", 0, "mine TypeError", False),
        ("process.on('uncaughtExceptionMonitor', (e) => console.log('seen', e.name));\nnull.x;", 1, "seen TypeError", True),
        ("const d = require('domain').create();\nd.on('error', (e) => console.log('mine', e.name));\nd.run(() => setTimeout(() => null.x));", 0, "mine TypeError", False),
        ("process.exitCode = 4;", 4, "", False),
        ("setTimeout(() => process.exit(6));", 6, "", False),
        ("await 1;\nprocess.exit(3);", 3, "", False),
        ("await new Promise(() => {});", 13, "", False),
    ],
    ids=["handler", "handler-exits", "handler-throws", "rejection", "capture", "monitor", "domain", "exitCode", "exit", "await-exit", "unsettled"],
)  # fmt: skip
def test_handlers_and_exit_codes_are_the_programs_own(client, language, source, code, stdout, has_error):
    """As in node itself, down to the code of a handler that fails."""
    answer = run(client, source, language, script=True)

    assert (answer.exit_code, answer.error is not None) == (code, has_error), answer
    assert answer.stdout.startswith(stdout)


@pytest.mark.parametrize("language", NODE)
@pytest.mark.parametrize("script", [False, True], ids=["main", "script"])
@pytest.mark.parametrize(
    "source",
    [
        "const x = await Promise.resolve(41);\nconsole.log(x + 1);\nexport const main = () => x + 1;",
        "import { sep } from 'node:path';\nconsole.log(41 + sep.length);\nexport default () => 41 + sep.length;",
        "import { sep } from 'node:path';\nconst x = await 41;\nconsole.log(x + sep.length);\nexport const main = async () => x + sep.length;",
        "import { x } from './later.mjs';\nconsole.log(x + 1);\nexport const main = () => x + 1;",
    ],
    ids=["await", "import", "both", "imports-await"],
)  # fmt: skip
def test_modules_run_in_both_modes(client, language, script, source):
    answer = run(client, source, language, script=script, files={"later.mjs": "export const x = await 41;"})

    assert (answer.outcome, answer.stdout) == ("success", "42\n"), answer
    assert answer.value == (None if script else 42)


@pytest.mark.parametrize("language", NODE)
@pytest.mark.parametrize(
    "source",
    [
        "import { sep } from 'node:path';\nfunction main() { return sep; }",
        "const sep = await Promise.resolve('/');\nconst main = async () => sep;",
        "import { sep } from 'node:path';\nexport { own as main };\nconst main = 1, own = () => sep;",
    ],
    ids=["import", "await", "exported"],
)
def test_main_of_a_module_need_not_be_exported(client, language, source):
    """It was said not to be there."""
    assert run(client, source, language, script=False).value == "/"


@pytest.mark.parametrize("script", [False, True], ids=["main", "script"])
@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("function main() {\n  return 1;", 2),
        ("function main() {}\nconst a = `b", 2),
        ("function main() {}\nmain(", 2),
        ("export function main() {\n  let x = ;\n}", 2),
        ("import fs from 'fs';\n\nfs.a(,);\n", 3),
    ],
    ids=["brace", "template", "parenthesis", "module", "import"],
)
def test_a_syntax_error_is_in_a_line_of_the_author(client, source, line, script):
    """What a source lacked at its end was missed in the line that we append, which was shown; in modules there was none."""
    answer = run(client, source, "nodejs", script=script)

    text = source.splitlines()[line - 1]
    assert (error_of(answer).type, error_of(answer).line) == ("SyntaxError", line)
    assert frames(answer) == [("main.js", line, text.strip())]
    assert answer.stderr.startswith(f"/workspace/main.js:{line}\n{text}\n")


@pytest.mark.parametrize("language", NODE)
@pytest.mark.parametrize(
    "patch",
    [
        "Object.prototype.toJSON = Array.prototype.toJSON = () => { throw new Error('patch'); };",
        "for (const name of ['line', '0']) Object.defineProperty(Object.prototype, name, { set() { throw new Error('patch'); } });",
        "globalThis.Error = globalThis.SyntaxError = null;",
        "Promise.prototype.then = null;",
    ],
    ids=["toJSON", "setter", "Error", "then"],
)
def test_patched_globals_do_not_spoil_the_report(client, language, patch):
    """The report ran into the patch, and what was shown was its failing in the bootstrap."""
    answer = run(client, f"{patch}\nasync function main() {{ throw new RangeError('own'); }}", language, script=False)

    assert (answer.exit_code, error_of(answer).type, error_of(answer).line) == (1, "RangeError", 2)
    assert "patch" not in answer.stderr
    assert run(client, f"{patch}\nasync function main() {{ return 7; }}", language, script=False).value == 7


@pytest.mark.parametrize("language", NODE)
def test_a_stack_that_the_program_sees_ends_with_main(client, language):
    source = (
        "async function main() {\n  console.error(new Error('a'));\n  await null;\n  return new Error('b').stack;\n}"
    )
    answer = run(client, source, language, script=False)

    name = f"/workspace/main{SUFFIX[language]}"
    assert answer.stderr == f"Error: a\n    at main ({name}:2:17)\n"
    assert answer.value == f"Error: b\n    at main ({name}:4:10)"


@pytest.mark.parametrize("language", NODE)
def test_an_exception_whose_stack_is_too_much_output_is_told(client, language):
    answer = run(
        client,
        "function main() {\n  throw new RangeError('own');\n}",
        language,
        script=False,
        limits={"output_bytes": 10},
    )

    assert (answer.outcome, answer.stderr) == ("output_limit", "RangeError")
    assert (error_of(answer).type, error_of(answer).message, error_of(answer).line) == ("RangeError", "own", 2)


def test_frames_of_node_are_left_out(client):
    answer = run(client, "function main() {\n  require('fs').readFileSync('no');\n}", "nodejs", script=False)

    assert (error_of(answer).line, "ENOENT" in answer.stderr, "node:" in answer.stderr) == (2, True, False)


def test_a_module_that_awaits_is_not_required_twice(client):
    """What fails is the program's own require: taken for the program's own await, it ran once more."""
    answer = run(client, "console.log('once');\nrequire('./later.mjs');", "nodejs", script=True, files={"later.mjs": "await 1;"})  # fmt: skip

    assert (answer.exit_code, answer.stdout) == (1, "once\n")


@pytest.mark.parametrize("script", [False, True], ids=["main", "script"])
@pytest.mark.parametrize(
    ("language", "entry", "files", "expected"),
    [
        (
            "python",
            "pkg/app.py",
            {
                "pkg/app.py": "import os, helper\nX = 41\ndef main():\n    return [__file__, os.getcwd(), helper.f()]\nif __name__ == '__main__':\n    print(main())",
                "pkg/helper.py": "def f():\n    from app import X\n    return X + 1",
            },
            ["/workspace/pkg/app.py", "/workspace", 42],
        ),
        (
            "nodejs",
            "pkg/app.js",
            {
                "pkg/app.js": "exports.x = 41;\nexports.main = () => [__filename, process.cwd(), require('./helper').f()];\nif (require.main === module) console.log(exports.main());",
                "pkg/helper.js": "const app = require('./app');\nexports.f = () => app.x + 1;",
            },
            ["/workspace/pkg/app.js", "/workspace", 42],
        ),
        (
            "nodejs",
            "pkg/app.mjs",
            {
                "pkg/app.mjs": "import { f } from './helper.mjs';\nexport const x = await 41;\nexport const main = () => [import.meta.filename, process.cwd(), f()];\nif (import.meta.filename === process.argv[1]) console.log(main());",
                "pkg/helper.mjs": "import { x } from './app.mjs';\nexport const f = () => x + 1;",
            },
            ["/workspace/pkg/app.mjs", "/workspace", 42],
        ),
        (
            "typescript",
            "pkg/app.ts",
            {
                "pkg/app.ts": "import { f } from './helper.ts';\nexport const x: number = 41;\nexport const main = (): unknown => [import.meta.filename, process.cwd(), f()];\nif (import.meta.filename === process.argv[1]) console.log(main());",
                "pkg/helper.ts": "import { x } from './app.ts';\nexport const f = (): number => x + 1;",
            },
            ["/workspace/pkg/app.ts", "/workspace", 42],
        ),
        (
            "bash",
            "pkg/app.sh",
            {
                "pkg/app.sh": '. "$(dirname "${BASH_SOURCE[0]}")/helper.sh"\nmain() { f | jq -R "[., $(grep -c . pkg/app.sh)]" >&3; }\nif [[ $0 == pkg/app.sh ]]; then main 3>&1; fi',
                "pkg/helper.sh": 'f() { echo "${BASH_SOURCE[1]#./}:$PWD"; }',
            },
            ["pkg/app.sh:/workspace", 3],
        ),
    ],
    ids=["python", "nodejs", "nodejs-module", "typescript", "bash"],
)  # fmt: skip
def test_an_entry_point_runs_where_it_lies(client, language, entry, files, expected, script):
    answer = run(client, None, language, script=script, files=files, entry_point=entry)

    assert answer.outcome == "success", answer
    if script:
        assert all(str(part) in answer.stdout for part in expected), answer.stdout
    else:
        assert answer.value == expected


@pytest.mark.parametrize("script", [False, True], ids=["main", "script"])
@pytest.mark.parametrize(
    ("language", "entry", "source"),
    [
        ("python", "pkg/app.py", "def main():\n    raise KeyError(1)\nif __name__ == '__main__': main()"),
        ("nodejs", "pkg/app.js", "function main() {\n  null.x;\n}\nif (require.main === module) main();"),
        ("nodejs", "pkg/app.cjs", "exports.main = () => {\n  null.x;\n}\nif (require.main === module) exports.main();"),
        ("typescript", "pkg/app.mts", "export function main(): any {\n  (null as any).x;\n}\nif (process.argv[2]) main();"),
    ],
    ids=["python", "nodejs", "nodejs-common", "typescript-module"],
)  # fmt: skip
def test_an_entry_point_that_fails_is_called_by_its_name(client, language, entry, source, script):
    answer = run(
        client, None, language, script=script, files={entry: source}, entry_point=entry, args=["x"] if script else ()
    )

    assert (answer.outcome, error_of(answer).line) == ("program_error", 2), answer
    last = (entry, 2, source.splitlines()[1].strip())
    assert frames(answer) == (
        [last] if not script else [(entry, len(source.splitlines()), source.splitlines()[-1]), last]
    )
    assert f"/workspace/{entry}" in answer.stderr


def test_a_bash_entry_point_keeps_its_name_and_may_begin_with_a_dash(client):
    answer = run(
        client, None, "bash", script=True, files={"-x.sh": "echo $0 $1\nnope"}, entry_point="-x.sh", args=["a"]
    )

    assert (answer.exit_code, answer.stdout, answer.stderr) == (
        127,
        "-x.sh a\n",
        "-x.sh: line 2: nope: command not found\n",
    )
    answer = run(
        client, None, "bash", script=False, files={"pkg/app.sh": "main() {\n  nope\n}"}, entry_point="pkg/app.sh"
    )
    assert (answer.exit_code, answer.stderr) == (127, "./pkg/app.sh: line 2: nope: command not found\n")


@pytest.mark.parametrize("script", [False, True], ids=["main", "script"])
def test_a_syntax_error_that_analysis_finds_looks_as_if_it_had_run(client, script):
    source = "x = 1\ndef main(:\n    pass\n"
    for fields, name in (
        ({"source": source}, "main.py"),
        ({"source": None, "files": {"a/b.py": source}, "entry_point": "a/b.py"}, "a/b.py"),
    ):
        answer = run(client, language="python", script=script, **fields)

        assert (error_of(answer).type, error_of(answer).line, answer.memory_kb) == ("SyntaxError", 2, 0)
        assert frames(answer) == [(name, 2, "def main(:")]
        assert answer.stderr.startswith(f'  File "/workspace/{name}", line 2\n')


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "def main():\n    print('out')\n    return '[' * 0 + 'x' * 2_000_000", "language": "python"}, ""),
        ({"source": "import sys\ndef main():\n    sys.stderr.write('err')\n    return float('nan')", "language": "python"}, "ValueError"),
        ({"source": "main() { echo err >&2; echo nope >&3; }", "language": "bash"}, "The result of main is not valid JSON"),
        ({"source": "def main(): pass", "language": "python", "files": {"a": "x", "a/b": "y"}}, "cannot be placed"),
        ({"source": "def main(:", "language": "python"}, "SyntaxError"),
    ],
)  # fmt: skip
def test_why_it_failed_is_streamed_too(client, fields, words):
    """`run` compares what is streamed with the answer."""
    answer = run(client, script=False, **fields)

    assert not answer.is_success and words in answer.stderr


# What node does


@pytest.mark.parametrize("language", NODE)
@pytest.mark.parametrize(
    "guard",
    [
        "if (!module.parent) main();",
        "if (require.main === module) main();",
    ],
)
def test_a_program_whose_main_is_called_is_no_main_script(client: Client, language: str, guard: str) -> None:
    """What it keeps for the command line is not run."""
    answer = run(client, f"function main({{a}}) {{ return a }}\n{guard}", language, script=False, arguments={"a": 1})
    assert value_of(answer) == 1


def test_a_module_whose_main_is_called_is_no_main_script(client: Client) -> None:
    source = (
        "import { fileURLToPath } from 'node:url';\n"
        "export function main({ a }) { return [a, process.argv.length] }\n"
        "if (process.argv[1] === fileURLToPath(import.meta.url)) main();"
    )
    answer = run(client, source, "nodejs", script=False, arguments={"a": 1})
    assert value_of(answer) == [1, 2]


@pytest.mark.parametrize(
    ("handler", "exit_code", "stdout"),
    [
        ("code => { console.log('bye', code); process.exit() }", 0, "bye 0\n"),
        ("code => { console.log('bye', code); process.exit(4) }", 4, "bye 0\n"),
        ("() => { process.exitCode = 3 }", 3, ""),
        ("() => {}", 0, ""),
    ],
)
def test_handlers_of_the_exit_are_called_once_and_decide(
    client: Client, handler: str, exit_code: int, stdout: str
) -> None:
    answer = run(client, f"process.on('exit', {handler});\nfunction main() {{ return 1 }}", "nodejs", script=False)
    assert (answer.exit_code, answer.stdout) == (exit_code, stdout)
    assert value_of(answer) == (None if exit_code else 1)


@pytest.mark.parametrize("exports", ["Object.freeze({ helper: 1 })", "5", "{ helper: 1 }", "main"])
def test_a_plain_main_is_found_whatever_is_exported(client: Client, exports: str) -> None:
    answer = run(client, f"function main() {{ return 1 }}\nmodule.exports = {exports};", "nodejs", script=False)
    assert (answer.outcome, value_of(answer)) == ("success", 1)


def test_lines_are_counted_as_the_engine_counts_them(client: Client) -> None:
    source = "const s = 'a\u2028b';\nfunction main() {\n  throw new Error(s.length);\n}"
    answer = run(client, source, "nodejs", script=False)
    assert frames(answer) == [("main.js", 4, "throw new Error(s.length);")]


def test_a_packed_artifact_is_called_what_it_is(client: Client) -> None:
    source = "import gzip\ndef main():\n    with gzip.open('artifacts/a.csv.gz', 'wt') as f: f.write('a')"
    answer = client.run(source, artifacts=["*"])
    assert [(one.name, one.mime_type) for one in answer.artifacts] == [("a.csv.gz", "application/gzip")]
