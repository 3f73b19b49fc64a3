"""Two tenants with keys of their own, one slot, real containers: none of them serves both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest

from sandbox_svc.runtime.docker_engine import RuntimeName
from tests.hostile.harness import Service, running
from tests.integration.conftest import why_no_engine

pytestmark = [pytest.mark.docker, pytest.mark.skipif(bool(why_no_engine()), reason=why_no_engine())]

WHO = "import os\ndef main():\n    return os.getuid()"
RUNS = 3


def create_key(file: Path, tenant: str) -> str:
    command = [sys.executable, "-m", "sandbox_svc", "keys", "create", tenant, "--file", str(file)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=30, env=os.environ
    ).stdout.strip()


def run(service: Service, key: str) -> int:
    """Run a program and return a number of its container, since each has uids of its own."""
    reply = service.post("/v1/run", {"code": WHO}, **{"X-API-Key": key})
    assert reply.status == 200, reply.body
    uid: int = json.loads(reply.body)["result"]["value"]
    return (uid - 1_000_000) // 4096


def test_two_tenants_share_a_slot_and_never_a_container(tmp_path: Path, runtime_name: RuntimeName) -> None:
    file = tmp_path / "keys.toml"
    keys = {tenant: create_key(file, tenant) for tenant in ("acme", "zeta")}
    settings = {"SANDBOX_API_KEYS_FILE": str(file), "SANDBOX_LANGUAGES": "python"}
    with running(tmp_path, runtime_name, **settings) as service:
        assert service.post("/v1/run", {"code": WHO}).status == 401
        (first,) = service.containers()
        assert run(service, keys["acme"]) == run(service, keys["acme"])
        assert service.containers() == [first], "the same tenant is served by the same container"
        run(service, keys["zeta"])
        (second,) = service.containers()
        assert second != first

        served: dict[int, set[str]] = defaultdict(set)
        runs: list[str] = []

        def ask_again_and_again(tenant: str) -> None:
            for _ in range(RUNS):
                served[run(service, keys[tenant])].add(tenant)
                runs.append(tenant)

        callers = [threading.Thread(target=ask_again_and_again, args=(tenant,)) for tenant in (*keys, *keys)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            assert len(service.containers()) <= 1
        assert len(runs) == 4 * RUNS
        assert {1} == {len(tenants) for tenants in served.values()}, served
        assert set(keys) == set.union(*served.values())
