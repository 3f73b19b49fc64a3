"""API keys: what the file may say, who is let in, how it changes under a running service, and the command."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sandbox_svc.__main__ import main
from sandbox_svc.admission.keys import KEY_PREFIX, KeyRing, create_key, hash_key
from sandbox_svc.errors import SettingsError, Unauthorized
from sandbox_svc.runtime import RunLimits
from sandbox_svc.service.runs import default_maxima
from sandbox_svc.service.tenants import Tenant
from sandbox_svc.settings import read_settings
from tests.fakes import ManualClock, quiet

MAXIMA = default_maxima(timeout_seconds=10, memory_bytes=256 * 1024 * 1024)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def ring(path: Path, maxima: RunLimits = MAXIMA) -> KeyRing:
    return KeyRing(str(path), maxima=maxima)


def entry(tenant: str = "acme", key: str = "sbx_test", **fields: Any) -> str:
    lines = ["[[key]]", f'tenant = "{tenant}"', f'hash = "sha256:{hash_key(key).hex()}"']
    lines += [f"{name} = {value!r}".replace("'", '"') for name, value in fields.items()]
    return "\n".join(lines) + "\n"


def rewrite(path: Path, text: str) -> None:
    """Write the file as an editor does, and at a time that differs from the last."""
    path.write_text(text)
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 10_000_000_000))


# Who is let in


def test_a_created_key_names_its_tenant_and_the_file_holds_only_its_hash(path: Path) -> None:
    key = create_key(path, "acme")
    assert key.startswith(KEY_PREFIX)
    assert len(key) >= 40
    assert key not in path.read_text()
    assert hash_key(key).hex() in path.read_text()
    assert ring(path).tenant(key) == Tenant(name="acme")


@pytest.mark.parametrize(
    "key", [None, "", "sbx_", "x", "sbx_" + "A" * 43, "k" * 100_000, "ключ", "\udc80", "a, b", "sbx_test ", "SBX_TEST"]
)
def test_any_other_key_is_refused(path: Path, key: str | None) -> None:
    path.write_text(entry())
    keys = ring(path)
    assert keys.tenant("sbx_test").name == "acme"
    with pytest.raises(Unauthorized) as caught:
        keys.tenant(key)
    if key:
        assert str(caught.value) == "This API key is not known."


def test_a_hash_that_shares_its_beginning_is_not_enough(path: Path) -> None:
    """A key is found by the first bytes of its hash; all of it must agree."""
    digest = hash_key("sbx_test").hex()
    path.write_text(f'[[key]]\ntenant = "acme"\nhash = "sha256:{digest[:-1]}{"0" if digest[-1] != "0" else "1"}"\n')
    with pytest.raises(Unauthorized):
        ring(path).tenant("sbx_test")


def test_a_file_without_keys_lets_nobody_in(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("# none yet\n")
    keys = ring(path)
    assert "holds no key" in caplog.text
    with pytest.raises(Unauthorized):
        keys.tenant("sbx_test")


def test_a_file_that_loses_its_last_key_is_warned_of(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From then on everybody is refused, and the log said that all was well."""
    path.write_text(entry())
    keys = ring(path)
    path.write_text("")
    assert keys.reload()
    assert [record.levelname for record in caplog.records if "holds no key" in record.getMessage()] == ["WARNING"]


def test_a_key_grants_a_rate_a_share_and_maxima(path: Path) -> None:
    path.write_text(
        entry(
            rate_limit="20/second",
            concurrency=2,
            max_timeout="5s",
            max_cpu="2s",
            max_memory="64m",
            max_output="16k",
            max_result="8k",
        )
        + entry("plain", "sbx_plain")
        + entry("free", "sbx_free", rate_limit="")
    )
    keys = ring(path)
    tenant = keys.tenant("sbx_test")
    assert (tenant.name, tenant.share, tenant.rate_key) == ("acme", 2, "")
    assert tenant.maxima == RunLimits(
        wall_ms=5000, cpu_ms=2000, memory_bytes=64 * 1024 * 1024, output_bytes=16 * 1024, result_bytes=8 * 1024
    )
    assert keys.tenant("sbx_plain") == Tenant(name="plain")
    assert [keys.rate_limit(name) for name in ("acme", "plain", "free", "nobody")] == ["20/second", None, "", None]


# What the file may say


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[key]\n", "line 1"),
        ('{"key": []}', "the file is no TOML: "),
        ("key = 5\n", "array"),
        ("[[kez]]\n", "unknown field `kez`"),
        ('[[key]]\ntenant = "acme"\n', "missing required field `hash`"),
        (entry("no spaces please"), "tenant"),
        (entry("a/b"), "tenant"),
        (entry("x" * 65), "tenant"),
        ('[[key]]\ntenant = "acme"\nhash = "md5:00"\n', "hash"),
        ('[[key]]\ntenant = "acme"\nhash = "sbx_the-key-itself"\n', "hash"),
        (entry(tenant="acme\\n"), "tenant"),
        (entry(rate_limit="lots"), "key 1 (tenant acme): rate_limit is not a rate"),
        (entry(concurrency=0), "concurrency"),
        (entry(concurrency=0.5), "concurrency"),
        (entry(max_timeout="11s"), "key 1 (tenant acme): max_timeout is not between 100ms and 10s"),
        (entry(max_memory="1g"), "max_memory is not between 16m and 256m"),
        (entry(max_memory="soon"), "max_memory is not a size"),
        (entry(expires="never"), "unknown field `expires`"),
        (entry() + entry(), "key 2 (tenant acme) has the hash of an earlier key"),
        (entry() + entry("other"), "key 2 (tenant other) has the hash of an earlier key"),
        (entry() + entry(key="sbx_2", rate_limit="1/second"), "key 2 (tenant acme) grants something else"),
    ],
)
def test_a_bad_file_is_refused_at_the_start_by_its_variable_and_its_place(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        ring(path)
    assert str(caught.value).startswith("SANDBOX_API_KEYS_FILE: ")
    assert message in str(caught.value)
    assert "sbx_the-key-itself" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0" * 10, b"a = " + b"[" * 100_000, b"#" * (4 * 1024 * 1024 + 1)])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^SANDBOX_API_KEYS_FILE: "):
        ring(path)


@pytest.mark.timeout(10)
def test_a_named_pipe_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(SettingsError, match=r"^SANDBOX_API_KEYS_FILE: .* no regular file"):
        ring(path)
    with pytest.raises(SettingsError, match=r"^SANDBOX_API_KEYS_FILE='.*no regular file"):
        read_settings({"SANDBOX_API_KEYS_FILE": str(path)})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_the_null_device_is_no_file_of_keys(path: Path) -> None:
    """As a container has it at the place of a file that was not mounted: the host's, beside its own."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.stat("/dev/null").st_rdev)
    for place in ("/dev/null", str(path)):
        assert read_settings({"SANDBOX_API_KEYS_FILE": place}).api_keys_file is None


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^SANDBOX_API_KEYS_FILE: the file cannot be read"):
        ring(path)


def test_no_repr_shows_a_hash(path: Path) -> None:
    path.write_text(entry())
    assert repr(ring(path)) == "<KeyRing 1 keys, 1 tenants>"


# Reload


def test_a_changed_file_is_taken_and_a_removed_key_is_refused(path: Path) -> None:
    path.write_text(entry())
    keys = ring(path)
    assert not keys.reload()
    rewrite(path, entry("other", "sbx_other"))
    assert keys.reload()
    assert keys.tenant("sbx_other").name == "other"
    with pytest.raises(Unauthorized):
        keys.tenant("sbx_test")
    assert not keys.reload()


@pytest.mark.parametrize("how", ["broken", "half an entry", "missing", "not readable", "a folder"])
def test_a_bad_file_changes_nothing_and_is_said_once(
    path: Path, how: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(entry())
    keys = ring(path)
    match how:
        case "broken":
            rewrite(path, "[[key")
        case "half an entry":
            rewrite(path, entry() + '[[key]]\ntenant = "ne')
        case "missing":
            path.unlink()
        case "not readable":
            rewrite(path, entry("other"))

            def refuse(*_arguments: object) -> None:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(os, "open", refuse)
        case "a folder":
            path.unlink()
            path.mkdir()
    for _ in range(3):
        assert not keys.reload()
    assert keys.tenant("sbx_test").name == "acme"
    problem = keys.problem
    assert problem is not None
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "SANDBOX_API_KEYS_FILE" in line
    assert "the 1 keys from before stay in force" in line
    monkeypatch.undo()
    if path.is_dir():
        path.rmdir()
    rewrite(path, entry("other"))
    assert keys.reload()
    assert keys.problem is None
    assert keys.tenant("sbx_test").name == "other"


def test_a_bad_file_that_is_put_back_is_good_again(path: Path) -> None:
    path.write_text(entry())
    keys = ring(path)
    rewrite(path, "[[key")
    assert not keys.reload()
    rewrite(path, entry())
    assert keys.reload()
    assert keys.problem is None


def test_an_emptied_file_lets_nobody_in(path: Path) -> None:
    """Who removes the last key means it."""
    path.write_text(entry())
    keys = ring(path)
    rewrite(path, "")
    assert keys.reload()
    with pytest.raises(Unauthorized):
        keys.tenant("sbx_test")


def test_a_change_that_keeps_size_and_time_is_seen_while_it_is_fresh(path: Path) -> None:
    """A file system stamps times in steps: two writes within one of them look alike from outside."""
    path.write_text(entry("acme"))
    keys = ring(path)
    stamps = path.stat()
    with path.open("r+") as file:
        file.write(entry("emca"))
    os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert keys.reload()
    assert keys.tenant("sbx_test").name == "emca"


def test_a_file_that_is_replaced_is_followed(path: Path, tmp_path: Path) -> None:
    """What mounted secrets do: the name is a link that moves on to another folder."""
    for number, tenant in enumerate(("acme", "other")):
        (tmp_path / str(number)).mkdir()
        rewrite(tmp_path / str(number) / "keys.toml", entry(tenant))
    (tmp_path / "now").symlink_to("0")
    keys = ring(tmp_path / "now" / "keys.toml")
    assert keys.tenant("sbx_test").name == "acme"
    (tmp_path / "next").symlink_to("1")
    (tmp_path / "next").rename(tmp_path / "now")
    assert keys.reload()
    assert keys.tenant("sbx_test").name == "other"


@pytest.mark.anyio
async def test_watch_takes_a_new_key_within_its_period(path: Path, clock: ManualClock) -> None:
    path.write_text(entry())  # noqa: ASYNC240 - a small file, and nobody else on the loop
    keys = KeyRing(str(path), maxima=MAXIMA, clock=clock)
    watching = asyncio.create_task(keys.watch())
    new = create_key(path, "other")
    for _ in range(50):
        await clock.advance(1)
        # The file is read in a thread, which the clock does not move.
        await asyncio.sleep(0.01)
        if len(keys) == 2:
            break
    assert keys.tenant(new).name == "other"
    watching.cancel()
    await quiet()


# The command


def test_keys_of_one_tenant_grant_the_same(path: Path) -> None:
    first = create_key(path, "acme", rate_limit="20/second", concurrency=3, max_timeout="5s")
    second = create_key(path, "acme")
    keys = ring(path)
    assert keys.tenant(first) == keys.tenant(second)
    assert keys.tenant(second).share == 3
    with pytest.raises(SettingsError, match="grants something else"):
        create_key(path, "acme", concurrency=4)
    assert len(ring(path)) == 2


def test_what_is_in_the_file_is_kept_to_the_letter(path: Path) -> None:
    before = "# ours\n" + entry("other", "sbx_other").rstrip("\n")
    path.write_text(before)
    create_key(path, "acme")
    assert path.read_text().startswith(before + "\n")
    assert {name: ring(path).tenant(key).name for name, key in {"other": "sbx_other"}.items()} == {"other": "other"}


def test_a_broken_file_is_not_appended_to(path: Path) -> None:
    path.write_text("[[key")
    with pytest.raises(SettingsError):
        create_key(path, "acme")
    assert path.read_text() == "[[key"


def test_commands_at_the_same_time_lose_nothing(path: Path) -> None:
    threads = [Thread(target=create_key, args=(path, f"tenant-{number}")) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ring(path)) == 20


def test_the_command_prints_the_key_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "create", "acme", "--file", str(path), "--rate-limit", "9/minute"]) == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert ring(path).tenant(key).name == "acme"
    assert ring(path).rate_limit("acme") == "9/minute"
    assert key not in err
    assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0


def test_the_command_takes_the_file_of_the_setting(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_API_KEYS_FILE", str(path))
    assert main(["keys", "create", "acme"]) == 0
    assert ring(path).tenant(capsys.readouterr().out.strip()).name == "acme"


@pytest.mark.parametrize(("timeout", "is_told"), [("10s", True), ("1m", False)])
def test_the_command_tells_of_a_grant_that_the_service_refuses(
    path: Path, timeout: str, is_told: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key too generous and the file is refused as a whole: the running service keeps the old keys, the next start fails."""
    monkeypatch.setenv("SANDBOX_TIMEOUT", timeout)
    assert main(["keys", "create", "acme", "--file", str(path), "--max-timeout", "1m"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("sbx_")
    assert ("max_timeout is not between 100ms and 10s" in err) == is_told


@pytest.mark.parametrize(
    "arguments",
    [
        ["acme"],
        ["--file", "/nowhere/at/all.toml", "acme"],
        ["--file", "{path}", "no spaces"],
        ["--file", "{path}", "acme", "--rate-limit", "lots"],
        ["--file", "{path}", "acme", "--max-timeout", "x"],
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_writes_nothing(
    path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOX_API_KEYS_FILE", raising=False)
    assert main(["keys", "create", *(argument.format(path=path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sandbox-svc: ")
    assert not path.exists() or path.read_text() == ""
