"""compose.yaml, .env.example and the scripts that drive them; no engine is asked, a stand-in for docker is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from sandbox_svc.settings import VARIABLES, default_settings, read_settings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
AFTER_DRAIN_SECONDS = 45
"""What an engine that does not answer can cost after the drain."""


def composes() -> list[list[str]]:
    """The commands that this machine has of those that `make up` may choose."""
    found = []
    if shutil.which("docker-compose"):
        found.append(["docker-compose"])
    if (
        shutil.which("docker")
        and not subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False, timeout=60
        ).returncode
    ):
        found.append(["docker", "compose"])
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc", "user"} & service.keys()
    assert service["mem_limit"] == service["memswap_limit"]
    assert service["pids_limit"] > 0
    assert all("nosuid,nodev,noexec" in mount and "size=" in mount for mount in service["tmpfs"])
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_runs_as_nobody_in_particular(name: str) -> None:
    """Compose says no `user`, so the image does."""
    dockerfile = (ROOT / "images" / name / "Dockerfile").read_text(encoding="utf-8")

    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)[-1] == "65532:65532"


def test_only_the_service_holds_the_socket() -> None:
    holders = {name for name, service in SERVICES.items() if "docker.sock" in str(service.get("volumes", ""))}

    assert holders == {"service"}
    assert [volume for volume in SERVICES["service"]["volumes"] if not volume.endswith(":ro")] == [
        "${SANDBOX_STACK_SOCKET:-/var/run/docker.sock}:/var/run/docker.sock"
    ]


def test_nothing_is_published_beyond_the_loopback_unless_told_to() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {
        "service": ["${SANDBOX_HOST:-127.0.0.1}:${SANDBOX_PORT:-9385}:9385"],
        "prometheus": ["127.0.0.1:${SANDBOX_STACK_PROMETHEUS_PORT:-9090}:9090"],
    }


def test_redis_is_bounded_and_reached_by_the_service_alone() -> None:
    config = (ROOT / "images" / "redis" / "redis.conf").read_text(encoding="utf-8")

    assert [name for name, service in SERVICES.items() if "back" in service["networks"]] == ["service", "redis"]
    assert SERVICES["redis"]["networks"] == ["back"]
    assert yaml.safe_load(COMPOSE)["networks"]["back"]["internal"] is True
    # What Redis may hold leaves room for what it needs beside it.
    (megabytes,) = re.findall(r"^maxmemory (\d+)mb$", config, re.MULTILINE)
    assert 2 * int(megabytes) * 2**20 <= int(SERVICES["redis"]["mem_limit"].removesuffix("m")) * 2**20
    assert "maxmemory-policy noeviction" in config
    assert 'save ""' in config


def test_only_what_is_asked_for_is_behind_a_profile() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "service": None,
        "redis": None,
        "prometheus": ["metrics"],
    }


def test_the_grace_period_is_longer_than_the_longest_stop() -> None:
    (default,) = re.findall(r"stop_grace_period: .*:-(\d+)s}", COMPOSE)

    assert int(default) > default_settings().drain_timeout_seconds + AFTER_DRAIN_SECONDS


def test_the_default_of_the_drain_is_the_services_own() -> None:
    lib = (ROOT / "scripts" / "lib.sh").read_text(encoding="utf-8")
    (drain,) = (variable for variable in VARIABLES.values() if variable.name == "SANDBOX_DRAIN_TIMEOUT")

    assert f"DRAIN_DEFAULT={drain.default}\n" in lib


def test_every_variable_has_a_default_so_that_a_look_needs_none() -> None:
    """`docker compose -p sandbox-svc ps` works without the scripts."""
    named = re.findall(r"\$\{[^}]*\}", COMPOSE)

    assert named
    assert all(":-" in variable for variable in named)


@pytest.mark.skipif(not composes(), reason="neither Compose v2 nor docker-compose is installed")
@pytest.mark.parametrize("compose", composes(), ids="-".join)
@pytest.mark.parametrize("profile", ["", "metrics"])
def test_compose_takes_the_file(compose: list[str], profile: str, tmp_path: Path) -> None:
    # In an empty folder and environment: neither the operator's .env nor this shell's variables count.
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    command = [*compose, "--file", str(ROOT / "compose.yaml"), "--project-directory", str(tmp_path), "config", "-q"]
    environ = {"PATH": path, "HOME": str(tmp_path), "COMPOSE_PROFILES": profile}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")


# .env.example


def examples() -> dict[str, str]:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    return dict(re.findall(r"^#([A-Z_]+)=(.*)$", text, re.MULTILINE))


def test_the_example_shows_the_defaults() -> None:
    # The stack's own, said in compose.yaml.
    differ = {"SANDBOX_LOG_FORMAT": "json"}
    defaults = {variable.name: variable.default for variable in VARIABLES.values()} | differ
    inside = {"SANDBOX_REDIS_URL", "DOCKER_HOST", "DOCKER_CERT_PATH"}

    shown = examples()

    assert {name: value for name, value in shown.items() if name in defaults} == {
        name: value for name, value in defaults.items() if name not in inside
    }
    for name, value in shown.items():
        if name not in defaults and name.startswith("SANDBOX_"):
            assert f"${{{name}:-{value}}}" in COMPOSE, name
        else:
            assert name.startswith(("SANDBOX_", "OTEL_", "COMPOSE_")), name


def test_the_example_is_good_for_the_service() -> None:
    shown = {name: value for name, value in examples().items() if not name.startswith("SANDBOX_STACK_")}

    assert read_settings(shown) == default_settings(log_format="json")


# The scripts, with a docker that is made up


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the scripts need, so that no .env and no stack of this machine is met."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "compose.yaml", folder)
    return folder


@pytest.fixture
def engine_socket(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        yield path


def make_docker(tmp_path: Path, *lines: str) -> Path:
    """Put a `docker` of these shell lines into a folder of its own; it notes how it was called in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "docker"
    script.write_text("\n".join(["#!/bin/bash", f'echo "$*" >>{tmp_path}/calls', *lines]))
    script.chmod(0o755)
    return folder


def run(*command: str, path: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    tools = "/usr/local/bin:/usr/bin:/bin"
    return subprocess.run(
        command,
        env={"PATH": tools if path is None else f"{path}:{tools}", **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def in_lib(checkout: Path, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run("bash", "-c", f"set -euo pipefail; source {checkout}/scripts/lib.sh; {script}", path=None, **environ)


def test_down_says_why_an_engine_does_not_answer_and_fails(checkout: Path, tmp_path: Path, engine_socket: Path) -> None:
    """A stack that may still run is not stopped."""
    docker = make_docker(tmp_path, "echo permission denied >&2", "exit 1")

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    assert done.returncode == 1
    assert "may still run" in done.stderr
    assert "permission denied" in done.stderr


def test_down_is_done_where_no_engine_can_run(checkout: Path, tmp_path: Path) -> None:
    docker = make_docker(tmp_path, "exit 1")

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST=f"unix://{tmp_path}/nothing")

    assert (done.returncode, "no engine" in done.stderr) == (0, True)


def test_down_fails_for_an_engine_elsewhere_that_does_not_answer(checkout: Path, tmp_path: Path) -> None:
    docker = make_docker(tmp_path, "echo no route to host >&2", "exit 1")

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST="tcp://engine.invalid:2376")

    assert done.returncode == 1
    assert "no route to host" in done.stderr


def test_a_user_who_may_not_use_the_engine_is_told_so(checkout: Path, tmp_path: Path) -> None:
    """It was `no Docker engine answers`, with advice to install one."""
    docker = make_docker(tmp_path, "echo Got permission denied while trying to connect >&2", "exit 1")

    done = run(str(checkout / "scripts/engine.sh"), path=docker)

    assert done.returncode == 1
    assert "runs, but this user may not use it" in done.stderr
    assert "usermod" in done.stderr


def test_an_engine_elsewhere_that_does_not_answer_is_no_missing_client(checkout: Path, tmp_path: Path) -> None:
    docker = make_docker(tmp_path, "echo no route to host >&2", "exit 1")

    done = run(str(checkout / "scripts/engine.sh"), path=docker, DOCKER_HOST="tcp://engine.invalid:2376")

    assert done.returncode == 1
    assert "no route to host" in done.stderr
    assert "not installed" not in done.stderr


def test_who_names_a_file_of_keys_never_gets_a_service_without_keys() -> None:
    """However the stack is started: the service looks at the place where the file is mounted, whatever is there."""
    service = yaml.safe_load(COMPOSE)["services"]["service"]

    place = service["environment"]["SANDBOX_API_KEYS_FILE"]

    assert f"${{SANDBOX_API_KEYS_FILE:-/dev/null}}:{place}:ro" in service["volumes"]


def test_down_stops_a_stack_whose_file_of_keys_is_gone(checkout: Path, tmp_path: Path, engine_socket: Path) -> None:
    docker = make_docker(tmp_path, f'echo "keys=$SANDBOX_API_KEYS_FILE" >>{tmp_path}/calls')
    (checkout / ".env").write_text("SANDBOX_API_KEYS_FILE=/gone/keys.toml\nSANDBOX_DRAIN_TIMEOUT=soon\n")

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    calls = (tmp_path / "calls").read_text()
    assert done.returncode == 0, done.stderr
    assert "--project-name sandbox-svc" in calls
    assert "down --remove-orphans" in calls
    assert "keys=\n" in calls


def test_the_engine_is_the_one_that_the_client_asks(checkout: Path, tmp_path: Path, engine_socket: Path) -> None:
    """Docker Desktop and rootless engines are a context of the client; `down` saw no socket and called that no engine."""
    docker = make_docker(
        tmp_path,
        f"if [[ $1 == context ]]; then echo unix://{engine_socket}; fi",
        f'echo "socket=$SANDBOX_STACK_SOCKET" >>{tmp_path}/calls',
    )

    done = run(str(checkout / "scripts/down.sh"), path=docker)

    calls = (tmp_path / "calls").read_text()
    assert done.returncode == 0, done.stderr
    assert "down --remove-orphans" in calls
    assert f"socket={engine_socket}\n" in calls


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
def test_down_stops_a_stack_whose_settings_make_no_sense(checkout: Path, tmp_path: Path, engine_socket: Path) -> None:
    """Compose reads the whole file before it does anything."""
    (checkout / ".env").write_text(
        "SANDBOX_HOST=localhost\nSANDBOX_PORT=x\nSANDBOX_STACK_CPUS=abc\nSANDBOX_STACK_PROMETHEUS_PORT=y\n"
    )
    docker = make_docker(tmp_path, "[[ $1 != compose ]]")
    script = (checkout / "scripts/down.sh").read_text()
    (checkout / "scripts/down.sh").write_text(script.replace("down --remove-orphans", "config --quiet"))

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    assert (done.returncode, done.stderr) == (0, "")


def test_down_tells_of_sandboxes_that_run_on(checkout: Path, tmp_path: Path, engine_socket: Path) -> None:
    docker = make_docker(tmp_path, r'if [[ $1 == ps ]]; then printf "a\trunning\tother pid:[1] 1 1\n"; fi')

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    assert done.returncode == 0
    assert "1 sandboxes run on" in done.stderr
    assert "rm --force" not in (tmp_path / "calls").read_text()


def test_down_removes_what_nobody_owns_and_leaves_the_rest_to_its_owners(
    checkout: Path, tmp_path: Path, engine_socket: Path
) -> None:
    """Another service on this engine keeps its sandboxes, also those that ended just now."""
    ended = {"old": "2026-01-01T00:00:00.5Z", "new": datetime.now(UTC).isoformat()}
    for name, finished in ended.items():
        (tmp_path / name).write_text(finished)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    gone = f"{boot} {os.readlink('/proc/self/ns/pid')} 999999999 1"
    listed = ["old\texited\tother pid:[1] 1 1", "run\trunning\tother pid:[1] 1 1", f"orphan\trunning\t{gone}"]
    (tmp_path / "ps").write_text("\n".join([*listed, "new\texited\tother pid:[1] 1 1"]) + "\n")
    docker = make_docker(
        tmp_path,
        f"cd {tmp_path}",
        'case "$1" in',
        # The owner of `new` removes it meanwhile.
        "    ps) cat ps; : >ps ;;",
        '    inspect) cat "$4" ;;',
        "esac",
    )

    done = run(str(checkout / "scripts/down.sh"), path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    removed = re.findall(r"^rm --force --volumes (.*)$", (tmp_path / "calls").read_text(), re.MULTILINE)
    assert done.returncode == 0, done.stderr
    # Only root sees whether a process of this host has ended.
    assert removed == ["old orphan" if os.geteuid() == 0 else "old"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("SANDBOX_API_KEYS_FILE=/gone/keys.toml", "is not the absolute path of a file"),
        (
            "export SANDBOX_API_KEYS_FILE = /gone/keys.toml # ours",
            "SANDBOX_API_KEYS_FILE=/gone/keys.toml is not the abs",
        ),
        ("SANDBOX_POOLSIZE=8", "SANDBOX_POOLSIZE in .env is no setting of the stack"),
        ("SANDBOX_REDIS_URL=redis://elsewhere:6379/0", "SANDBOX_REDIS_URL in .env is no setting of the stack"),
        ("SANDBOX_HOST=localhost", "SANDBOX_HOST=localhost is not an address"),
        ("SANDBOX_PORT=http", "SANDBOX_PORT=http is not a number"),
        ("SANDBOX_STACK_CPUS=all", "SANDBOX_STACK_CPUS=all is not a number"),
        ("SANDBOX_DRAIN_TIMEOUT=soon", "SANDBOX_DRAIN_TIMEOUT=soon is not a duration"),
        ("SANDBOX_STACK_STOP_GRACE=60s", "SANDBOX_STACK_STOP_GRACE=60s is too short: a stop takes up to 60 s"),
        ("SANDBOX_STACK_STOP_GRACE=long", "SANDBOX_STACK_STOP_GRACE=long is not a duration"),
        ("SANDBOX_DRAIN_TIMEOUT=1m\nSANDBOX_STACK_STOP_GRACE=75s", "a stop takes up to 105 s"),
    ],
)
def test_up_refuses_what_would_not_work_before_it_does_anything(
    checkout: Path, tmp_path: Path, line: str, words: str
) -> None:
    docker = make_docker(tmp_path, "exit 1")
    (checkout / ".env").write_text(line + "\n")

    done = run(str(checkout / "scripts/up.sh"), path=docker)

    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "calls").exists()


def test_up_does_not_wait_for_a_service_that_refuses_its_settings(
    checkout: Path, tmp_path: Path, engine_socket: Path
) -> None:
    """It took three minutes to say that a value in .env is wrong."""
    docker = make_docker(
        tmp_path,
        'case "$*" in',
        '    *" port service "*) echo 127.0.0.1:1 ;;',
        '    *" ps --quiet "*) echo made-up ;;',
        # At first of a start before, whose reason may be mended by now.
        f"    inspect*made-up) echo inspected >>{tmp_path}/n; echo $(($(wc -l <{tmp_path}/n) / 4)) 2 ;;",
        '    *" logs "*) echo SANDBOX_TIMEOUT is no duration ;;',
        "esac",
    )

    done = run(str(checkout / "scripts/up.sh"), "--as-built", path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    assert done.returncode == 1
    assert "SANDBOX_TIMEOUT is no duration" in done.stderr
    assert "refuses its settings" in done.stderr


@pytest.mark.parametrize(("published", "found"), [("127.0.0.1", "127.0.0.1"), ("[::]", "[::1]")])
def test_up_finds_a_service_that_was_being_started_again(
    checkout: Path, tmp_path: Path, engine_socket: Path, published: str, found: str
) -> None:
    """Its address was asked for once, in a moment in which it had none, and it was never found ready; nor was any of
    version 6."""
    family = socket.AF_INET6 if ":" in found else socket.AF_INET
    with socket.create_server((found.strip("[]"), 0), family=family) as listener:
        port = listener.getsockname()[1]
        docker = make_docker(
            tmp_path,
            f'if [[ $* == *" port service "* ]]; then [[ -e {tmp_path}/asked ]] && echo {published}:{port}; fi',
            f'if [[ $* == *" port service "* ]]; then touch {tmp_path}/asked; fi',
        )

        def answer() -> None:
            # Whoever asks on a busy machine may give up before the answer and ask again.
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        done = run(str(checkout / "scripts/up.sh"), "--as-built", path=docker, DOCKER_HOST=f"unix://{engine_socket}")

    assert done.returncode == 0, done.stderr
    assert f"ready at http://{found}:{port}" in done.stdout


@pytest.mark.parametrize(
    ("environ", "grace"),
    [
        ({}, "75s"),
        ({"SANDBOX_DRAIN_TIMEOUT": "2m30s"}, "210s"),
        ({"SANDBOX_DRAIN_TIMEOUT": "500ms"}, "61s"),
        ({"SANDBOX_DRAIN_TIMEOUT": "7.5"}, "68s"),
        ({"SANDBOX_DRAIN_TIMEOUT": "1h"}, "3660s"),
        ({"SANDBOX_DRAIN_TIMEOUT": "20s", "SANDBOX_STACK_STOP_GRACE": "2m"}, "120s"),
    ],
)
def test_the_grace_period_follows_the_drain(
    checkout: Path, engine_socket: Path, environ: dict[str, str], grace: str
) -> None:
    script = 'check_stack_settings; export_stack_variables; echo "$SANDBOX_STACK_STOP_GRACE"'

    done = in_lib(checkout, script, DOCKER_HOST=f"unix://{engine_socket}", **environ)

    assert (done.returncode, done.stdout.strip()) == (0, grace), done.stderr


def test_a_setting_is_read_from_env_as_compose_reads_it(checkout: Path) -> None:
    (checkout / ".env").write_text("A=first\nA='20s'\r\nB=\"x y\"\n# A=comment\nAB=other\n")

    done = in_lib(checkout, 'echo "$(setting A)|$(setting B)|$(setting C)"')

    assert done.stdout == "20s|x y|\n"


WAYS_TO_WRITE = [
    "A=/k.toml",
    "export A=/k.toml",
    "  A = /k.toml",
    "A=/k.toml  # ours",
    "A='/k.toml' # it's",
    "A=/k.toml \r",
    "\ufeffA=/k.toml",
]


@pytest.mark.parametrize("line", WAYS_TO_WRITE)
def test_no_way_to_write_a_setting_is_missed(checkout: Path, line: str) -> None:
    """Compose mounted the file of keys, the scripts saw none, and the service asked nobody for a key."""
    (checkout / ".env").write_text(line + "\n")

    assert in_lib(checkout, 'echo "$(setting A)"').stdout == "/k.toml\n"


@pytest.mark.skipif(not composes(), reason="neither Compose v2 nor docker-compose is installed")
@pytest.mark.parametrize("compose", composes(), ids="-".join)
@pytest.mark.parametrize("line", [*WAYS_TO_WRITE, "A=/k#1.toml", 'A="/k 1.toml"', "A="])
def test_compose_reads_a_setting_as_the_scripts_do(compose: list[str], checkout: Path, line: str) -> None:
    (checkout / ".env").write_text(line + "\n")
    (checkout / "one.yaml").write_text('services: {one: {image: one, environment: {FOUND: "${A:-}"}}}\n')
    files = ["--file", str(checkout / "one.yaml"), "--project-directory", str(checkout)]
    done = run(*compose, *files, "config")

    (found,) = yaml.safe_load(done.stdout)["services"]["one"]["environment"].values()
    assert in_lib(checkout, 'echo "$(setting A)"').stdout == f"{found}\n"


def test_what_callers_keep_there_is_left_alone(checkout: Path) -> None:
    (checkout / ".env").write_text("SANDBOX_CLIENT_KEY=sbx_x\n")

    assert in_lib(checkout, "check_stack_settings").returncode == 0


def test_what_the_example_shows_is_handed_on(checkout: Path) -> None:
    shown = [name for name in examples() if name.startswith("SANDBOX_")]

    for name in shown:
        assert in_lib(checkout, f"is_handed_on {name}").returncode == 0, name


@pytest.mark.parametrize("options", [[], ["--metrics"]])
def test_prometheus_is_built_on_request_only(checkout: Path, tmp_path: Path, options: list[str]) -> None:
    """`make up` takes no longer for it."""
    shutil.copytree(ROOT / "images", checkout / "images", ignore=shutil.ignore_patterns(".host", "__pycache__"))
    docker = make_docker(
        tmp_path,
        'if [ "$1" = run ]; then cat >/dev/null; fi',
        'case "$*" in *buildx*) exit 1 ;; *Size*) echo 1000000 ;; *) echo "{}" ;; esac',
    )

    done = run(str(checkout / "scripts/images.sh"), *options, path=docker)

    built = re.findall(r"--tag (\S+)", (tmp_path / "calls").read_text())
    assert done.returncode == 0, done.stderr
    assert {"sandbox-svc/service:latest", "sandbox-svc/redis:latest", "sandbox-svc/python:latest"} <= set(built)
    assert ("sandbox-svc/prometheus:latest" in built) == bool(options)


@pytest.mark.parametrize(
    ("pulled", "bootstrapped", "base"),
    [
        ("2026-01-02", "2026-01-01", "debian:trixie-slim"),
        ("2026-01-01", "2026-01-02", "sandbox-svc/debian:trixie-slim"),
    ],
)
def test_images_stand_on_the_newest_base(
    checkout: Path, tmp_path: Path, pulled: str, bootstrapped: str, base: str
) -> None:
    """A refresh that found no registry was undone by the next build, on what had been pulled long before."""
    shutil.copytree(ROOT / "images", checkout / "images", ignore=shutil.ignore_patterns(".host", "__pycache__"))
    docker = make_docker(
        tmp_path,
        'if [ "$1" = run ]; then cat >/dev/null; fi',
        'case "$*" in *buildx*) exit 1 ;; *Size*) echo 1000000 ;;',
        f"    *Created*sandbox-svc/debian*) echo {bootstrapped}T00:00:00.5Z ;; *Created*) echo {pulled}T00:00:00.5Z ;;",
        '    *) echo "{}" ;; esac',
    )

    done = run(str(checkout / "scripts/images.sh"), path=docker)

    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"--build-arg BASE=(\S+)", (tmp_path / "calls").read_text())) == {base}


OURS = {"path": "/elsewhere/runsc", "runtimeArgs": ["--platform=systrap", "--network=none"]}


@pytest.mark.parametrize(
    ("registered", "is_changed"),
    [(None, True), (OURS, True), ({"path": "/usr/bin/runsc", "runtimeArgs": ["--platform=ptrace"]}, False)],
)
def test_a_runsc_of_somebody_elses_stays_registered_as_it_is(
    checkout: Path, tmp_path: Path, registered: dict[str, Any] | None, is_changed: bool
) -> None:
    """It was replaced by one without network, for containers of others too."""
    docker = make_docker(tmp_path, """case "$1" in info) echo '{"runsc": {}}' ;; image) exit 1 ;; esac""")
    runsc = tmp_path / "runsc"
    runsc.write_text("#!/bin/sh\necho runsc version release-20260101.0\n")
    runsc.chmod(0o755)
    real, config = tmp_path / "real.json", tmp_path / "daemon.json"
    before = {"log-level": "warn", "runtimes": {} if registered is None else {"runsc": registered}}
    real.write_text(json.dumps(before))
    real.chmod(0o600)
    config.symlink_to(real)
    with subprocess.Popen(["sleep", "60"]) as engine:
        (tmp_path / "pid").write_text(str(engine.pid))
        done = run(
            str(checkout / "scripts/gvisor.sh"),
            path=docker,
            SANDBOX_RUNSC=str(runsc),
            SANDBOX_DAEMON_CONFIG=str(config),
            SANDBOX_DAEMON_PIDFILE=str(tmp_path / "pid"),
        )
        engine.kill()

    after = json.loads(real.read_text())
    assert done.returncode == 0, done.stderr
    assert after == (before | {"runtimes": {"runsc": OURS | {"path": str(runsc)}}} if is_changed else before)
    assert ("stays as it is" in done.stderr) != is_changed
    assert config.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600


def test_scripts_find_themselves_whatever_cd_looks_at(checkout: Path) -> None:
    script = f'cd {checkout}; CDPATH=.; export CDPATH; source scripts/lib.sh; printf %s "$ROOT"'
    assert run("bash", "-c", script).stdout == str(checkout)
