"""`strict` refuses all that the executor manager before this one refused, except where that refused arithmetic and names."""

from __future__ import annotations

import pytest

from sandbox_svc.analysis import AnalysisMode, SourceAnalyser

STRICT = SourceAnalyser(AnalysisMode.STRICT)

MODULES = [
    "os",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "ctypes",
    "pickle",
    "threading",
    "multiprocessing",
    "asyncio",
    "http.client",
    "ftplib",
    "telnetlib",
    "builtins",
]
CALLS = ["eval", "exec", "open", "__import__", "compile", "input", "getattr", "setattr", "globals", "locals"]
OS_CALLS = ["system", "popen", "remove", "rename", "rmdir", "chdir", "chmod", "chown"]
DOTTED = [
    "shutil.rmtree",
    "subprocess.call",
    "subprocess.Popen",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "pickle.dumps",
]


def rules(language: str, source: str) -> set[str]:
    return {finding.rule for finding in STRICT.analyse(language, source.encode()).findings}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "form", ["import {0}", "import {0} as x", "from {0} import *", "from {0} import y", "__import__('{0}')"]
)
def test_its_modules_are_refused_in_every_form_of_import(module: str, form: str):
    assert rules("python", form.format(module) + "\ndef main():\n    return 1\n")


@pytest.mark.parametrize("name", CALLS)
def test_its_builtins_are_refused_called_or_as_values(name: str):
    assert "py-strict-call" in rules("python", f"def main(x):\n    return {name}(x)\n")
    assert "py-strict-call" in rules("python", f"f = {name}\ndef main(x):\n    return f(x)\n")


@pytest.mark.parametrize("name", OS_CALLS)
def test_its_system_calls_are_refused_however_the_module_came(name: str):
    assert rules("python", f"import os\ndef main():\n    os.{name}('x')\n")
    assert rules("python", f"import random\ndef main():\n    random._os.{name}('x')\n")


@pytest.mark.parametrize("name", DOTTED)
def test_its_dotted_calls_are_refused(name: str):
    module, _, function = name.partition(".")
    assert rules("python", f"from {module} import {function} as f\ndef main(x):\n    return f(x)\n")


@pytest.mark.parametrize(
    "source",
    [
        "const m = require('child_process');",
        "const m = require('fs');",
        "const m = require(`worker_threads`);",
        "import m from 'node:fs/promises';",
        "function main(x) { return eval(x); }",
        "function main(x) { return Function(x); }",
        "function main(x) { return new Function(x); }",
        "function main(x) { return process.binding(x); }",
        "function main(x) { return process . binding ( x ); }",
    ],
)
def test_its_patterns_for_javascript_are_refused(source: str):
    assert rules("javascript", source)


@pytest.mark.parametrize(
    "source",
    [
        "def main():\n    return 60 * 60\n",
        "import re\ndef main(s):\n    return re.compile(s).findall(s)\n",
        "def main(xs):\n    xs.remove(1)\n    return xs\n",
        "class Door:\n    def open(self):\n        return 1\ndef main():\n    return Door().open()\n",
        "def system(x):\n    return x\ndef main():\n    return system(1)\n",
        "def main(x):\n    return (lambda y: y)(x), [z for z in x], {k: v for k, v in x}\n",
        "import json, math, datetime, collections\ndef main():\n    return 1\n",
    ],
)
def test_arithmetic_and_method_names_are_not(source: str):
    """The old one refused a product of two constants and every method named `remove`."""
    assert set() == rules("python", source)
