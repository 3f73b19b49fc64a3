"""Sandboxes with a network: which networks will do, and the container that filters one before any program runs.

The sandbox itself never gets the capability that this takes: a second container, of the same image and for half a
second, joins its network namespace and has no other. The reasons are in docs/decisions/0011-egress.md.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

from sandbox_svc.egress import Egress
from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.runtime import MIB
from sandbox_svc.runtime.container_spec import MASKED_PATHS, READONLY_PATHS, SERVICE, SERVICE_LABEL
from sandbox_svc.runtime.docker_engine import EngineRefused, Network
from sandbox_svc.runtime.languages import LANGUAGE_LABEL

log = logging.getLogger("sandbox_svc.docker")

FILTER_SECONDS: Final = 20.0
"""From create to exit code. A quiet host needs a quarter of a second."""
WORDS_BYTES: Final = 1024
"""Of what a filter says when it fails."""

_COMMAND: Final = ("/usr/bin/python3", "-I", "-S", "-B", "/opt/sandbox/supervisor/egress_filter.py")


class Networks(Protocol):
    """What the check asks of the engine."""

    async def network(self, name: str) -> Network: ...


class OneShot(Protocol):
    """A container that does one thing and ends; `docker_runtime` implements it."""

    async def create(self, config: dict[str, Any]) -> None: ...

    async def read(self) -> tuple[int, bytes] | None: ...

    async def exit_code(self) -> int: ...


async def check_networks(engine: Networks, runtime: str, egress: Egress) -> None:
    """Raises `RuntimeUnavailable` that names a network which sandboxes cannot have, or the runtime."""
    if egress.networks and runtime != "runc":
        # Its network stack is its own and knows nothing of a filter in the namespace; without one nothing may go out.
        raise RuntimeUnavailable(
            f"SANDBOX_EGRESS_NETWORKS needs the runtime runc, and {runtime} is in force: set SANDBOX_RUNTIME=runc."
        )
    for name in sorted(set(egress.networks.values())):
        try:
            network = await engine.network(name)
        except EngineRefused as error:
            raise RuntimeUnavailable(
                f"SANDBOX_EGRESS_NETWORKS names {name}, and the engine has no single network of that name."
            ) from error
        if network.name != name or network.driver != "bridge" or network.scope != "local":
            raise RuntimeUnavailable(
                f"SANDBOX_EGRESS_NETWORKS names {name}, which is no bridge network of this engine."
            )
        if network.is_internal:
            raise RuntimeUnavailable(f"SANDBOX_EGRESS_NETWORKS names {name}, which is internal: it has no way out.")


def filter_config(
    *, sandbox_id: str, image_id: str, refused: tuple[str, ...], seccomp: str, labels: dict[str, str]
) -> dict[str, Any]:
    """Return the body of the create call for the container that filters the network of `sandbox_id`.

    It has the labels by which a sweep finds it, and is of no language, since it is no sandbox.
    """
    return {
        "Image": image_id,
        "User": "0:0",
        "WorkingDir": "/",
        "Entrypoint": list(_COMMAND),
        "Cmd": list(refused),
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        # Empty, or the label of the image would be its own.
        "Labels": {SERVICE_LABEL: SERVICE, LANGUAGE_LABEL: "", **labels},
        "HostConfig": {
            "Runtime": "runc",
            "NetworkMode": f"container:{sandbox_id}",
            "IpcMode": "none",
            "CgroupnsMode": "private",
            "ReadonlyRootfs": True,
            "Privileged": False,
            "CapDrop": ["ALL"],
            # In the sandbox's network namespace, where no program is yet; the host's is out of reach.
            "CapAdd": ["NET_ADMIN"],
            "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
            "MaskedPaths": list(MASKED_PATHS),
            "ReadonlyPaths": list(READONLY_PATHS),
            "Memory": 64 * MIB,
            "MemorySwap": 64 * MIB,
            "PidsLimit": 16,
            "NanoCpus": 1_000_000_000,
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Init": False,
        },
    }


async def run_filter(container: OneShot, config: dict[str, Any]) -> None:
    """Run the filter and return once it holds. Raises `RuntimeUnavailable` in every other case."""
    words = b""
    try:
        async with asyncio.timeout(FILTER_SECONDS):
            await container.create(config)
            while (message := await container.read()) is not None:
                words = (words + message[1])[:WORDS_BYTES]
            code = await container.exit_code()
    except TimeoutError as error:
        raise RuntimeUnavailable(f"The egress filter did not end within {FILTER_SECONDS:g} seconds.") from error
    except OSError as error:
        raise RuntimeUnavailable("The egress filter was lost.") from error
    if code != 0:
        log.error("egress filter ended with %d and says %r", code, words)
        raise RuntimeUnavailable("The egress filter of a sandbox could not be set.")
