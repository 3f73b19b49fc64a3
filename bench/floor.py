"""What the machine can do at best, measured in a container of the language's image without limits or filters.

Runs in the image, on its own interpreter and modules: one JSON order per line of stdin, one JSON answer per line.
Standard library only.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def starts(argv: list[str], count: int) -> list[float]:
    """Milliseconds that each of `count` starts of a program takes, one after another."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def start_rate(argv: list[str], seconds: float) -> float:
    """Starts per second on all cores."""
    began = time.perf_counter()
    running: set[int] = set()
    done = 0
    files = [
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
    ]
    while running or time.perf_counter() - began < seconds:
        while time.perf_counter() - began < seconds and len(running) < (os.cpu_count() or 1):
            running.add(os.posix_spawn(argv[0], argv, os.environ, file_actions=files))
        pid, _ = os.wait()
        running.discard(pid)
        done += 1
    return done / (time.perf_counter() - began)


def fork_rate(source: str, arguments: dict[str, Any], modules: list[str], seconds: float) -> float:
    """Runs per second of fork, compile, call and report, on all cores, from processes with `modules` loaded."""
    workers = []
    for _ in range(os.cpu_count() or 1):
        ready_r, ready_w = os.pipe()
        go_r, go_w = os.pipe()
        done_r, done_w = os.pipe()
        if not os.fork():
            os.close(go_w)
            for name in modules:
                importlib.import_module(name)
            gc.collect()
            gc.freeze()
            os.write(ready_w, b"r")
            os.read(go_r, 1)
            began = time.perf_counter()
            count = 0
            while time.perf_counter() - began < seconds:
                _fork_once(source.encode(), json.dumps(arguments).encode())
                count += 1
            os.write(done_w, json.dumps(count / (time.perf_counter() - began)).encode())
            os._exit(0)
        os.close(go_r)
        workers.append((ready_r, ready_w, go_w, done_r, done_w))
    for worker in workers:
        os.read(worker[0], 1)
    for worker in workers:
        os.write(worker[2], b"g")
    rate: float = sum(json.loads(os.read(worker[3], 64)) for worker in workers)
    for worker in workers:
        os.wait()
        for fd in worker:
            os.close(fd)
    return rate


def _fork_once(source: bytes, arguments: bytes) -> None:
    result_r, result_w = os.pipe()
    pid = os.fork()
    if not pid:
        space: dict[str, Any] = {}
        exec(compile(source, "main.py", "exec"), space)
        os.write(result_w, json.dumps(space["main"](**json.loads(arguments))).encode())
        os._exit(0)
    os.close(result_w)
    if not os.read(result_r, 4096):
        raise RuntimeError("the program failed")
    os.close(result_r)
    os.waitpid(pid, 0)


def main() -> None:
    functions: dict[str, Callable[..., Any]] = {"starts": starts, "start_rate": start_rate, "fork_rate": fork_rate}
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(functions[order.pop("what")](**order)), flush=True)


if __name__ == "__main__":
    main()
