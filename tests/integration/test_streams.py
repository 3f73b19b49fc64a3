"""Events of real programs over real HTTP: they come while the program runs, and who leaves frees the container."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from sandbox_svc.admission.keys import create_key
from sandbox_svc.client import Client, Refused
from tests.hostile.harness import Service, py
from tests.integration.conftest import why_no_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine()),
]


class Keyed(NamedTuple):
    """A service with two tenants, of which one may do less."""

    service: Service
    key: str
    small_key: str


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("streams")
    key = create_key(folder / "keys.toml", "large")
    small_key = create_key(folder / "keys.toml", "small", max_timeout="2s", max_memory="64m")
    service = Service(folder, "runc", SANDBOX_API_KEYS_FILE=str(folder / "keys.toml"), SANDBOX_TIMEOUT="20s")
    try:
        service.start()
        yield Keyed(service, key, small_key)
    finally:
        service.stop()


class Event(NamedTuple):
    seconds: float
    """When its last byte came, from the request on."""
    name: str
    data: Any


def ask(keyed: Keyed, code: str, **fields: Any) -> socket.socket:
    body = json.dumps({"code": py(code), **fields}).encode()
    peer = keyed.service.socket()
    peer.sendall(
        b"POST /v1/run HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nConnection: close\r\n"
        b"X-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s" % (keyed.key.encode(), len(body), body)
    )
    return peer


def events(peer: socket.socket) -> Iterator[Event]:
    """The events as they arrive; each is a chunk of its own, or several that came together."""
    began = time.monotonic()
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        buffer += peer.recv(4096)
    head, _, buffer = buffer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"text/event-stream" in head
    body, is_over = b"", False
    while True:
        while b"\r\n" in buffer:
            size, _, rest = buffer.partition(b"\r\n")
            length = int(size, 16)
            if len(rest) < length + 2:
                break
            body, buffer = body + rest[:length], rest[length + 2 :]
            is_over = not length
        while b"\n\n" in body:
            block, _, body = body.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if fields:
                yield Event(time.monotonic() - began, fields["event"], json.loads(fields["data"]))
        if is_over:
            return
        chunk = peer.recv(65536)
        assert chunk, "the connection ended before the stream did"
        buffer += chunk


PYTHON = """
    import sys, time
    def main():
        print("one")
        time.sleep(1.5)
        print("two", file=sys.stderr)
        time.sleep(1.5)
        return "three"
    """
NODEJS = """
    const pause = () => new Promise((resolve) => setTimeout(resolve, 1500));
    async function main() {
      console.log("one");
      await pause();
      console.error("two");
      await pause();
      return "three";
    }
    """


@pytest.mark.parametrize(("language", "code"), [("python", PYTHON), ("nodejs", NODEJS)])
def test_events_come_while_the_program_runs(keyed, language, code):
    with ask(keyed, code, language=language) as peer:
        seen = list(events(peer))

    assert [(event.name, event.data) for event in seen[:-1]] == [
        ("output", {"stream": "stdout", "text": "one\n"}),
        ("output", {"stream": "stderr", "text": "two\n"}),
    ]
    one, two, three = seen
    assert (three.name, three.data["outcome"], three.data["result"]) == ("result", "success", {"value": "three"})
    assert (three.data["stdout"], three.data["stderr"]) == ("one\n", "two\n")
    # Half of the time that really passed, as the machine may be busy.
    assert two.seconds - one.seconds > 0.75
    assert three.seconds - two.seconds > 0.75


def test_a_limit_is_a_result_and_output_before_it_is_there(keyed):
    with ask(keyed, PYTHON, limits={"wall_ms": 700}) as peer:
        one, end = events(peer)

    assert one.data == {"stream": "stdout", "text": "one\n"}
    assert (end.name, end.data["outcome"], end.data["stdout"]) == ("result", "time_limit", "one\n")


@pytest.mark.parametrize("language", ["python", "nodejs"])
def test_a_reset_in_the_midst_of_a_stream_frees_the_container(keyed, language):
    """There is one container per language; the next program gets it long before the first would have ended."""
    code = {
        "python": "import time\ndef main():\n    print('on')\n    time.sleep(15)",
        "nodejs": "function main() { console.log('on'); return new Promise((resolve) => setTimeout(resolve, 15000)); }",
    }[language]
    quick = {"python": "def main(): return 1", "nodejs": "function main() { return 1; }"}[language]
    took = []
    with Client(f"http://127.0.0.1:{keyed.service.port}", key=keyed.key) as client:
        for _ in range(3):
            peer = ask(keyed, code, language=language)
            assert next(events(peer)).data["text"] == "on\n"
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            left = time.monotonic()
            peer.close()
            assert client.run(quick, language=language).value == 1
            took.append(time.monotonic() - left)

    assert max(took) < 5
    # What it takes when nothing else has the machine.
    assert min(took) < 1


def test_languages_are_listed_with_the_limits_of_the_key(keyed):
    url = f"http://127.0.0.1:{keyed.service.port}"
    with Client(url) as nobody, Client(url, key=keyed.key) as large, Client(url, key=keyed.small_key) as small:
        limits = [client.languages()[0].limits for client in (nobody, large, small)]

        assert [one.wall_ms for one in limits] == [20_000, 20_000, 2_000]
        assert [one.memory_bytes for one in limits] == [256 << 20, 256 << 20, 64 << 20]
        # What is listed may be asked for, and no more.
        asked = {"wall_ms": limits[2].wall_ms, "memory_bytes": limits[2].memory_bytes or 0}
        assert small.run("def main(): return 1", limits=asked).value == 1
        with pytest.raises(Refused, match=r"limits\.wall_ms"):
            small.run("def main(): return 1", limits={"wall_ms": limits[0].wall_ms})
    with Client(url, key="sbx_unknown") as stranger, pytest.raises(Refused, match="unauthorized"):
        stranger.languages()
