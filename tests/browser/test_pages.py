"""The pages in a real browser, at the width of a phone and of a desk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest

from tests.browser.webdriver import Browser

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

TAB, ESCAPE, CONTROL, ENTER, NULL = "\ue004", "\ue00c", "\ue009", "\ue007", "\ue000"


def set_code(page: Browser, code: str, arguments: str = "{}") -> None:
    page.replace("#code", code)
    page.replace("#arguments", arguments)


def run(page: Browser) -> None:
    page.click("#run")
    answered(page)


def answered(page: Browser) -> None:
    page.until(lambda: page.js("return document.querySelector('#stop').disabled") and page.text("#outcome"))


def values(page: Browser, selector: str, name: str) -> list[str]:
    found: list[str] = page.js(
        "return [...document.querySelectorAll(arguments[0])].map((one) => one[arguments[1]])", selector, name
    )
    return found


def test_the_example_of_every_language_runs(page):
    for name in values(page, "#language option", "value"):
        page.js(
            "const list = document.querySelector('#language'); list.value = arguments[0];"
            "list.dispatchEvent(new Event('change', {bubbles: true}))",
            name,
        )
        run(page)

        assert page.text("#outcome") == "Success"
        assert "Hello world" in page.text("#output")
        assert json.loads(page.text("#result"))
        page.until(lambda: page.js("return [...document.images].every((one) => one.complete && one.naturalWidth > 0)"))
        assert page.js("return document.querySelectorAll('#artifacts img').length") == 1
        assert values(page, "#timings dt", "textContent") == ["Queued", "Overhead", "Wall time", "CPU time", "Memory"]
        # Neither page scrolls sideways.
        assert page.js("return document.documentElement.scrollWidth <= innerWidth")


def test_output_is_shown_while_the_program_runs(page):
    set_code(page, "import time\ndef main():\n    print('early')\n    time.sleep(2)\n    print('late')")
    page.click("#run")
    page.until(lambda: "early" in page.text("#output"))

    assert "late" not in page.text("#output")
    assert page.js("return document.querySelector('#run').disabled")
    answered(page)
    assert page.text("#output") == "early\nlate"


def test_stop_kills_the_program(page, service):
    set_code(page, "import time\ndef main():\n    print('on')\n    time.sleep(9)")
    page.click("#run")
    page.until(lambda: "on" in page.text("#output"))
    stopped = time.monotonic()
    page.click("#stop")
    answered(page)

    assert page.text("#outcome") == "Stopped"
    # Its only container is free again long before the program would have ended.
    service.run("def main(): return 1")
    assert time.monotonic() - stopped < 5


def test_errors_say_where(page):
    set_code(page, "def main():\n    print('before')\n    return 1 / 0")
    run(page)

    assert page.text("#outcome") == "Program error"
    assert page.text("#verdict-text") == "ZeroDivisionError: division by zero, line 3"
    assert "before" in page.text("#output") and "Traceback" in page.text("#output")

    set_code(page, "def main(:\n    pass")
    run(page)

    assert "SyntaxError" in page.text("#output")


def test_what_analysis_refuses_is_said_line_by_line(page):
    set_code(page, "import os\ndef main():\n    os.system('id')")
    page.click("#run")
    answered(page)

    assert page.text("#outcome") == "code_refused"
    assert page.text("#output").startswith("Line 3:")
    # The browser itself notes the 422.
    assert len(page.complaints()) == 1


def test_arguments_that_are_no_json_are_not_sent(page):
    set_code(page, "def main(): return 1", "{oops")
    page.click("#run")

    assert "no JSON" in page.text("#arguments-error")
    assert page.js("return document.activeElement.id") == "arguments"


def test_scripts_have_input_arguments_and_files(page, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text.txt").write_text("grüße")
    page.js("document.querySelector('input[value=script]').click()")
    page.replace(
        "#code", "import sys\nprint(input(), sys.argv[1:], open('data.bin', 'rb').read(), open('text.txt').read())"
    )
    page.replace("#stdin", "line of input")
    page.replace("#args", "one\ntwo words")
    page.keys("#files", f"{tmp_path / 'data.bin'}\n{tmp_path / 'text.txt'}")
    page.until(lambda: len(values(page, "#file-list li", "textContent")) == 2)
    run(page)

    assert page.text("#output") == "line of input ['one', 'two words'] b'\\xff\\xfe\\x00' grüße"


@pytest.mark.parametrize("name", ["evil.svg", "evil.html"])
def test_artifacts_do_not_execute(page, name):
    """SVG and HTML of a program: shown as a picture or saved, never a page of this origin."""
    attack = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9' onload='parent.pwned=1'><script>parent.pwned=1;top.document.title='pwned'</script></svg>"
    set_code(
        page,
        f"def main():\n    open('artifacts/{name}', 'w').write({attack!r})\n    print({attack!r})\n    return {attack!r}",
    )
    run(page)
    page.until(lambda: page.js("return document.querySelectorAll('#artifacts a').length") == 1)
    page.until(lambda: page.js("return [...document.images].every((one) => one.complete)"))

    assert page.js("return [window.pwned === undefined, document.title]") == [True, "sandbox_svc: run a program"]
    assert values(page, "#artifacts a", "download") == [name]
    # Even opened on purpose, what is behind the link has no type that a browser would render.
    kind = page.js("return fetch(document.querySelector('#artifacts a').href).then(() => 'read', () => 'refused')")
    assert kind == "refused"
    assert page.js("return document.querySelectorAll('#output svg, #result svg').length") == 0
    page.complaints()  # the policy told about the fetch above


def test_the_keyboard_is_enough(page):
    page.js("document.querySelector('#code').focus(); document.querySelector('#code').select()")
    page.keys("#code", "def main():" + ENTER + "return 42")
    assert page.js("return document.querySelector('#code').value") == "def main():\n    return 42"
    page.keys("#code", TAB)
    assert page.js("return document.activeElement.id") == "code"
    page.keys("#code", ESCAPE + TAB)
    assert page.js("return document.activeElement.id") == "arguments"
    page.replace("#arguments", "{}")
    page.keys("#arguments", CONTROL + ENTER + NULL)
    answered(page)
    assert page.text("#result") == "42"


def test_everything_has_a_name(page):
    """What screen readers would announce: no control and no picture without a name."""
    roles = {"button", "textbox", "combobox", "link", "radio", "tab", "log", "image"}
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in roles]
    nameless = [node for node in controls if not node.get("name", {}).get("value")]
    assert len(controls) > 10
    assert nameless == []


def said(page: Browser) -> str:
    """What the status region holds for screen readers: text that is hidden from sight counts, `aria-hidden` does not."""
    text: str = page.js(
        "const region = document.querySelector('[role=status]').cloneNode(true);"
        "region.querySelectorAll('[aria-hidden=true]').forEach((one) => one.remove()); return region.textContent"
    )
    return text


def test_the_outcome_is_announced_and_the_ticking_is_not(page):
    page.js(
        "window.heard = []; new MutationObserver(() => window.heard.push(document.querySelector('[role=status]').textContent))"
        ".observe(document.querySelector('[role=status]'), {childList: true, subtree: true, characterData: true})"
    )
    set_code(page, "import time\ndef main():\n    time.sleep(2.2)\n    return 1 / 0")
    page.click("#run")
    page.until(lambda: page.text("#ticks") == "2 s")
    answered(page)

    assert page.js("return window.heard.filter((one) => /^[0-9]|Running.*[0-9]/.test(one))") == []
    assert page.js("return window.heard[0]") == "Running"
    assert re.fullmatch(r"Program error in [0-9.]+ s\. ZeroDivisionError: division by zero, line 4", said(page))
    assert page.js("return document.querySelector('#ticks').textContent") == ""
    # It was there all the time, so that it is heard.
    assert page.js("return getComputedStyle(document.querySelector('[role=status]').parentElement).display") != "none"

    set_code(page, "import time\ndef main():\n    print('on')\n    time.sleep(9)")
    page.click("#run")
    page.until(lambda: "on" in page.text("#output"))
    page.click("#stop")
    answered(page)
    assert said(page) == "Stopped. The program was killed."

    set_code(page, "import os\ndef main():\n    os.system('id')")
    run(page)
    assert said(page).startswith("code_refused. Code is unsafe")
    page.complaints()  # the 422


def test_numbers_keep_every_digit_on_both_ways(page, service):
    """`JSON.parse` rounds whole numbers above 2^53."""
    numbers = '{"id": 12345678901234567890, "share": 0.1000000000000000000001, "10": 1, "9": 2}'
    set_code(page, "def main(**all):\n    return {'all': all, 'next': all['id'] + 1}", numbers)
    page.until(lambda: "12345678901234567890" in page.text("#curl"))
    run(page)

    shown = page.text("#result")
    assert '"id": 12345678901234567890' in shown and '"next": 12345678901234567891' in shown
    assert shown.index('"10"') < shown.index('"9"')
    command = page.js("return document.querySelector('#curl').textContent")
    program = page.js("return document.querySelector('#python').textContent")
    assert '"share": 0.1000000000000000000001' in command
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True).stdout
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "12345678901234567891" in answer and "12345678901234567891" in printed.stdout


def test_the_page_waits_for_a_service_that_is_starting(shared_window, service):
    """The list of languages is empty at first, and a proxy in front may answer for a service that is not there."""
    script = """
        const real = window.fetch;
        let asked = 0;
        window.fetch = (url, ...rest) => {
          if (url !== '/v1/languages' || (asked += 1) > 3) return real(url, ...rest);
          if (asked === 1) return Promise.reject(new TypeError('Failed to fetch'));
          if (asked === 2) return Promise.resolve(new Response('<html>', { status: 502 }));
          window.seen = document.querySelector('#state').textContent;
          return Promise.resolve(Response.json({ languages: [], queue_ms: 0 }));
        };
        """
    added = shared_window.cdp("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        shared_window.open(f"http://127.0.0.1:{service.port}/")
        shared_window.until(lambda: shared_window.js("return document.querySelector('#language').options.length") == 2)
    finally:
        shared_window.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])

    assert "Waiting for the service" in shared_window.js("return window.seen")
    assert said(shared_window) == ""
    assert shared_window.js("return document.querySelector('#code').value") != ""


def test_an_api_key_is_sent_and_its_limits_are_shown(page):
    """The list of languages was read once, for nobody in particular."""
    page.replace("#code", "mine")
    page.js("""
        const real = window.fetch;
        window.keys = [];
        window.fetch = async (url, options) => {
          window.keys.push(options.headers['X-API-Key']);
          const list = await (await real(url, options)).json();
          list.languages[0].limits.wall_ms = 1500;
          list.languages.push({ ...list.languages[0], name: 'python-office', profile: 'office' });
          return Response.json(list);
        };
        document.querySelector('#key-box').open = true;
        const key = document.querySelector('#key');
        key.value = 'sbx_mine';
        key.dispatchEvent(new Event('change', { bubbles: true }));
        """)
    page.until(lambda: "Limits: 1.5 s" in page.text("#limits"))

    assert page.js("return window.keys") == ["sbx_mine"]
    assert page.js("return document.querySelector('#code').value") == "mine"
    assert page.js("return document.querySelector('#language').selectedOptions[0].value") == "python"
    page.js(
        "const list = document.querySelector('#language'); list.value = 'python-office';"
        "list.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    assert '"profile": "office"' in page.text("#curl") and '"language": "python"' in page.text("#curl")


CONTRAST = """
    const parse = (color) => {
      const [r, g, b, a = 1] = color.match(/[0-9.]+/g).map(Number);
      return [r, g, b, a];
    };
    const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
    const luminance = ([r, g, b]) => {
      const [x, y, z] = [r, g, b].map((one) => (one /= 255) <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
      return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    // What is behind the text of an element, and what of the text is left of its opacity and that of what it is in.
    const behind = (node) => {
      const layers = [];
      let opacity = 1;
      for (let one = node; one; one = one.parentElement) {
        const style = getComputedStyle(one);
        layers.push(parse(style.backgroundColor));
        opacity *= Number(style.opacity);
      }
      const canvas = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
      return [layers.reverse().reduce((below, layer) => over(layer, below), canvas), opacity];
    };
    const measure = (node, pseudo) => {
      const [background, opacity] = behind(node);
      const style = getComputedStyle(node, pseudo);
      const [r, g, b, a] = parse(style.color);
      const [x, y] = [luminance(over([r, g, b, a * opacity * (pseudo ? Number(style.opacity) : 1)], background)), luminance(background)];
      return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    };
    const found = [];
    for (const node of document.querySelectorAll('body *')) {
      const hasText = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim()) || node.matches('textarea, select, input[placeholder]');
      // Text beside buttons that cannot be pressed is exempt, and so is what is only there to be heard.
      if (!hasText || !node.checkVisibility({ visibilityProperty: true }) || node.closest(':disabled, .hidden, noscript, option')) continue;
      found.push([`${node.localName}#${node.id}.${node.className}: ${node.textContent.trim().slice(0, 30)}`, measure(node)]);
      if (node.placeholder) found.push([`placeholder of ${node.id}`, measure(node, '::placeholder')]);
    }
    return found;
    """


def assert_readable(window: Browser) -> None:
    """The contrast that WCAG 2 asks for, level AA, of every text that is shown."""
    texts = window.js(CONTRAST)
    assert len(texts) > 20
    assert [(name, round(ratio, 2)) for name, ratio in texts if ratio < 4.5] == []


def test_every_text_is_readable_in_every_state(themed_window, service, tmp_path):
    page = themed_window
    page.open(f"http://127.0.0.1:{service.port}/")
    page.until(lambda: page.js("return document.querySelector('#language').options.length") == 2)
    assert_readable(page)
    page.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert_readable(page)
    run(page)
    page.picture(tmp_path / "success.png")
    assert_readable(page)
    page.js("document.querySelector('input[value=script]').click()")
    page.replace("#code", "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)")
    run(page)
    assert page.text("#verdict-text") == "exit code 3"
    page.picture(tmp_path / "error.png")
    assert_readable(page)
    page.js("document.querySelector('input[value=main]').click()")
    set_code(page, "import time\ndef main(): time.sleep(9)", "{oops")
    page.click("#run")
    assert page.text("#arguments-error")
    assert_readable(page)
    page.replace("#arguments", "{}")
    page.click("#run")
    assert_readable(page)
    page.click("#stop")
    answered(page)
    assert_readable(page)


def test_the_documentation_is_readable(themed_window, service, tmp_path):
    themed_window.open(f"http://127.0.0.1:{service.port}/docs")
    themed_window.until(lambda: themed_window.js("return document.querySelectorAll('#docs section').length") > 5)
    themed_window.picture(tmp_path / "docs.png")

    assert_readable(themed_window)
    assert themed_window.js("return document.documentElement.scrollWidth <= innerWidth")


def test_the_snippets_do_the_same(page, service, tmp_path):
    """What is offered for copying is run as it stands, with quotes and line breaks in the program."""
    set_code(page, 'def main(who):\n    return f"it\'s \\"{who}\\" \\n"', '{"who": "grüße"}')
    page.until(lambda: "grüße" in page.js("return document.querySelector('#curl').textContent"))
    command = page.js("return document.querySelector('#curl').textContent")
    program = page.js("return document.querySelector('#python').textContent")

    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True).stdout
    limits = json.loads(service.get("/v1/languages").body)
    patience = int(re.findall(r"timeout=(\d+)", program)[0])
    assert patience * 1000 > limits["queue_ms"] + limits["languages"][0]["limits"]["wall_ms"]
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert json.loads(answer)["result"] == {"value": 'it\'s "grüße" \n'}
    assert printed.stdout == "success {'value': 'it\\'s \"grüße\" \\n'}\n"


def test_the_documentation_shows_every_operation_and_type(page, service):
    page.open(f"http://127.0.0.1:{service.port}/docs")
    page.until(lambda: page.js("return document.querySelectorAll('#docs section').length") > 5)
    document = json.loads(service.get("/openapi.json").body)

    shown = page.js("return document.body.innerText")
    for path in document["paths"]:
        assert path in shown
    for name, schema in document["components"]["schemas"].items():
        assert page.js("return document.getElementById(arguments[0]) !== null", name)
        assert all(field in shown for field in schema.get("properties", {}))
    targets = page.js("return [...document.querySelectorAll('#docs a[href^=\"#\"]')].map((one) => one.hash.slice(1))")
    assert [one for one in targets if not page.js("return Boolean(document.getElementById(arguments[0]))", one)] == []
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
