"""Handshake, cancel, bad frames, used-up uids, lost templates: the life of a supervisor around its runs."""

from __future__ import annotations

import json
import os
import signal

import msgspec
import pytest

from sandbox_svc.runtime.protocol import HEADER, Fault, FrameType
from tests.supervisor.conftest import SupervisorProcess


def test_ready_tells_parked_templates_and_runs_left(fresh_supervisor: SupervisorProcess) -> None:
    ready = fresh_supervisor.start()
    assert (ready.templates, ready.runs_left) == (("plain",), 1000)


def test_another_template_announces_itself_when_it_is_loaded(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.configure = msgspec.structs.replace(fresh_supervisor.configure, templates=("plain", "more"))
    ready = fresh_supervisor.start()
    while set(ready.templates) != {"plain", "more"}:
        ready = fresh_supervisor.ready()
    code = "import sys\ndef main():\n    return ['fractions' in sys.modules, __import__('os').getuid()]"
    answer = fresh_supervisor.run(code, template="more")
    assert answer.result is not None
    assert json.loads(answer.result)[0] is True
    answer = fresh_supervisor.run(code, template="plain")
    assert answer.result is not None
    assert json.loads(answer.result)[0] is False


def test_template_that_is_asked_for_is_loaded_at_once(fresh_supervisor: SupervisorProcess) -> None:
    """Otherwise it waits for an idle moment, which a container in use may never have."""
    fresh_supervisor.configure = msgspec.structs.replace(fresh_supervisor.configure, templates=("plain", "more"))
    assert fresh_supervisor.start().templates == ("plain",)
    code = "import sys\ndef main():\n    return 'fractions' in sys.modules"
    assert fresh_supervisor.run(code, template="more").result == b"true"
    assert fresh_supervisor.run(code, template="plain").result == b"false"


def test_template_is_warmed_and_each_of_its_processes_touched(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.configure = msgspec.structs.replace(fresh_supervisor.configure, templates=("plain", "more"))
    fresh_supervisor.start()
    code = "import decimal\ndef main():\n    return [hasattr(decimal, 'warmed'), hasattr(decimal, 'touched')]"
    assert fresh_supervisor.run(code, template="more").result == b"[true,true]"
    assert fresh_supervisor.run(code, template="plain").result == b"[false,false]"


def test_nothing_is_imported_for_a_run(fresh_supervisor: SupervisorProcess) -> None:
    """A module that the runner needs only now is imported in every process anew: one cost a fifth of a run."""
    fresh_supervisor.configure = msgspec.structs.replace(fresh_supervisor.configure, templates=("plain", "more"))
    fresh_supervisor.start()
    code = "import decimal, sys\ndef main():\n    return sorted(set(sys.modules) - decimal.touched)"
    assert fresh_supervisor.run(code, template="more").result == b'["main"]'


def test_every_run_has_a_uid_of_its_own(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    code = "import os\ndef main():\n    return os.getresuid() + os.getresgid()"
    seen = set()
    for _ in range(3):
        result = fresh_supervisor.run(code).result
        assert result is not None
        ids = json.loads(result)
        assert len(set(ids)) == 1
        seen.add(ids[0])
    assert len(seen) == 3
    assert min(seen) >= fresh_supervisor.uid_base


def test_used_up_uids_end_in_zero_runs_left(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.configure = msgspec.structs.replace(fresh_supervisor.configure, uid_count=2)
    assert fresh_supervisor.start().runs_left == 2
    left = []
    for _ in range(2):
        fresh_supervisor.begin("def main(): return 1")
        assert fresh_supervisor.answer().result == b"1"
        left.append(fresh_supervisor.ready().runs_left)
    assert left == [1, 0]


def test_last_uids_serve_whatever_template_is_asked_for(fresh_supervisor: SupervisorProcess) -> None:
    """A run for a template that has no process left, while another has one, waited until the sandbox was given up."""
    fresh_supervisor.configure = msgspec.structs.replace(
        fresh_supervisor.configure, uid_count=3, templates=("plain", "more")
    )
    fresh_supervisor.start()
    while "more" not in fresh_supervisor.ready().templates:
        pass
    for left in (2, 1, 0):
        fresh_supervisor.begin("def main(): return 1")
        assert fresh_supervisor.answer().result == b"1"
        assert fresh_supervisor.ready().runs_left == left


def test_cancel_kills_the_run_and_the_sandbox_stays_usable(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    run_id = fresh_supervisor.begin(
        "import time\ndef main():\n    print('on', flush=True); time.sleep(60)", stream=True
    )
    assert fresh_supervisor.expect(FrameType.OUTPUT).body == b"on\n"
    fresh_supervisor.send(FrameType.CANCEL, run_id, None)
    answer = fresh_supervisor.answer()
    assert (answer.head.cancelled, answer.head.signal) == (True, 9)
    fresh_supervisor.ready()
    assert fresh_supervisor.run("def main(): return 2").result == b"2"


def test_cancel_of_a_run_that_is_over_is_ignored(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    fresh_supervisor.run("def main(): return 1")
    fresh_supervisor.send(FrameType.CANCEL, fresh_supervisor.last_id, None)
    assert fresh_supervisor.run("def main(): return 2").result == b"2"


def test_ping_is_answered(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    fresh_supervisor.send(FrameType.PING, 0, None)
    fresh_supervisor.expect(FrameType.PONG)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(40),
        HEADER.pack(1, FrameType.RUN, 0xFFFFFFFF, 0, 1),
        HEADER.pack(1, 99, 0, 0, 1),
        HEADER.pack(2, FrameType.PING, 0, 0, 0),
        HEADER.pack(1, FrameType.RUN, 2, 0, 1) + b"{}",
        HEADER.pack(1, FrameType.RUN, 2, 0, 1) + b"[]",
        HEADER.pack(1, FrameType.CONFIGURE, 2, 0, 0) + b"{}",
    ],
)
def test_bytes_that_are_no_frame_end_the_sandbox(fresh_supervisor: SupervisorProcess, data: bytes) -> None:
    fresh_supervisor.start()
    fresh_supervisor.send_bytes(data)
    fault = msgspec.json.decode(fresh_supervisor.expect(FrameType.FAULT).head, type=Fault)
    assert fault.reason == "bad_frame"
    with pytest.raises(EOFError):
        fresh_supervisor.next()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a//b", "a/./b", "", "a/\0b", "x" * 300])
def test_unsafe_file_paths_are_refused(fresh_supervisor: SupervisorProcess, path: str) -> None:
    """The service validates paths first; the supervisor does not rely on that."""
    fresh_supervisor.start()
    fresh_supervisor.begin("def main(): pass", None, b"x", files=((path, 1),))
    fresh_supervisor.expect(FrameType.FAULT)


@pytest.mark.parametrize("path", ["../x.py", "/etc/x.py", "a//b.py", "a/./b.py", "a/", "a/\0b.py", "x" * 300])
def test_unsafe_paths_of_the_source_are_refused(fresh_supervisor: SupervisorProcess, path: str) -> None:
    """It is placed like any other file."""
    fresh_supervisor.start()
    fresh_supervisor.begin("def main(): pass", source_name=path)
    fresh_supervisor.expect(FrameType.FAULT)


def test_end_of_stdin_ends_the_supervisor_and_what_it_started(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    assert fresh_supervisor.process.stdin is not None
    fresh_supervisor.process.stdin.close()
    assert fresh_supervisor.process.wait(10) == 0


UNTIL_IT_IS_GONE = """
def is_gone():
    try:
        return open("/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:  # also where it goes between open and read
        return True
while not is_gone(): pass
"""


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def test_lost_template_is_a_fault(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    os.kill(_parent(fresh_supervisor.user_processes()[0]), signal.SIGKILL)
    assert b"template_lost" in fresh_supervisor.expect(FrameType.FAULT).head


@pytest.mark.parametrize("code", ["def main(): return 3", "import os\ndef main(): os._exit(3)"])
def test_a_run_is_answered_before_the_template_that_was_lost_beside_it_ends_the_container(
    fresh_supervisor: SupervisorProcess, code: str
) -> None:
    fresh_supervisor.configure = msgspec.structs.replace(fresh_supervisor.configure, templates=("plain", "more"))
    fresh_supervisor.start()
    fresh_supervisor.ready()
    _, more = sorted(fresh_supervisor.user_processes(), key=lambda pid: os.stat(f"/proc/{pid}").st_uid)
    template = _parent(more)
    fresh_supervisor.begin(f"{UNTIL_IT_IS_GONE.format(pid=template)}\n{code}")
    os.kill(template, signal.SIGKILL)

    answer = fresh_supervisor.answer()

    assert (answer.result, answer.head.exit_code) in ((b"3", 0), (None, 3))
    assert b"template_lost" in fresh_supervisor.expect(FrameType.FAULT).head


def test_a_run_whose_own_template_is_lost_is_lost_at_once(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    parked = fresh_supervisor.user_processes()[0]
    fresh_supervisor.begin("import time\ndef main(): time.sleep(9)")
    os.kill(_parent(parked), signal.SIGKILL)
    assert b"template_lost" in fresh_supervisor.expect(FrameType.FAULT).head


def test_parked_process_that_was_killed_is_replaced(fresh_supervisor: SupervisorProcess) -> None:
    fresh_supervisor.start()
    os.kill(fresh_supervisor.user_processes()[0], signal.SIGKILL)
    fresh_supervisor.ready()
    assert fresh_supervisor.run("def main(): return 3").result == b"3"
