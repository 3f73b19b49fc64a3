"""Settings are read once, refused by the variable's name, and never replaced by a silent default."""

from __future__ import annotations

import pytest

from sandbox_svc.errors import SettingsError
from sandbox_svc.notation import Secret
from sandbox_svc.settings import VARIABLES, default_settings, markdown_table, read_settings

MIB = 1024 * 1024


def test_defaults_are_read_from_an_empty_environment():
    settings = read_settings({})

    assert settings.host == "127.0.0.1"
    assert settings.port == 9385
    assert settings.timeout_seconds == 10
    assert settings.max_memory_bytes == 256 * MIB
    assert settings.max_body_bytes == 16 * MIB
    assert settings.rate_limit == "5/second"
    assert settings.languages == ("python", "nodejs")
    assert settings.analysis == "standard"
    assert settings.reuse == "tenant"
    assert settings.api_keys_file is None
    assert not settings.redis_url


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("60", 60),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1m", 60),
        ("2.5s", 2.5),
        ("1.5", 1.5),
        (" 10S ", 10),
        ("10m", 600),
    ],
)
def test_a_duration_is_read(text, seconds):
    assert read_settings({"SANDBOX_TIMEOUT": text}).timeout_seconds == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("256m", 256 * MIB), ("1G", 1024 * MIB), ("268435456", 256 * MIB), ("512mb", 512 * MIB)]
)
def test_a_size_is_read(text, count):
    assert read_settings({"SANDBOX_MAX_MEMORY": text}).max_memory_bytes == count


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SANDBOX_TIMEOUT", "0s"),
        ("SANDBOX_TIMEOUT", "0"),
        ("SANDBOX_TIMEOUT", "-1"),
        ("SANDBOX_TIMEOUT", "1h"),
        ("SANDBOX_TIMEOUT", ""),
        ("SANDBOX_TIMEOUT", "10 seconds"),
        ("SANDBOX_TIMEOUT", "s"),
        ("SANDBOX_TIMEOUT", "nan"),
        ("SANDBOX_TIMEOUT", "inf"),
        ("SANDBOX_TIMEOUT", "1e3"),
        ("SANDBOX_TIMEOUT", "٣"),
        ("SANDBOX_MAX_MEMORY", "0"),
        ("SANDBOX_MAX_MEMORY", "256"),
        ("SANDBOX_MAX_MEMORY", "1T"),
        ("SANDBOX_MAX_MEMORY", ""),
        ("SANDBOX_MAX_MEMORY", "-256m"),
        ("SANDBOX_MAX_MEMORY", "lots"),
        ("SANDBOX_MAX_BODY", "1g"),
        ("SANDBOX_POOL_SIZE", "0"),
        ("SANDBOX_POOL_SIZE", "abc"),
        ("SANDBOX_POOL_SIZE", ""),
        ("SANDBOX_POOL_SIZE", "1.5"),
        ("SANDBOX_POOL_SIZE", "1_0"),
        ("SANDBOX_POOL_SIZE", "9999999"),
        ("SANDBOX_PORT", "65536"),
        ("SANDBOX_PORT", "http"),
        ("SANDBOX_HOST", ""),
        ("SANDBOX_HOST", "a b"),
        ("SANDBOX_RATE_LIMIT", "fast"),
        ("SANDBOX_RATE_LIMIT", "0/second"),
        ("SANDBOX_REDIS_URL", "localhost:6379"),
        ("SANDBOX_API_KEYS_FILE", "/nonexistent/keys"),
        ("SANDBOX_API_KEYS_FILE", "/"),
        ("SANDBOX_API_KEYS_FILE", "/dev/zero"),
        ("SANDBOX_ANALYSIS", "paranoid"),
        ("SANDBOX_ANALYSIS", ""),
        ("SANDBOX_RUNTIME", "kata"),
        ("SANDBOX_REUSE", "always"),
        ("SANDBOX_QUEUE_TIMEOUT", "-1s"),
        ("SANDBOX_QUEUE_SIZE", "-1"),
        ("SANDBOX_DRAIN_TIMEOUT", "2h"),
        ("SANDBOX_LANGUAGES", ""),
        ("SANDBOX_LANGUAGES", "python,,nodejs"),
        ("SANDBOX_LANGUAGES", "python,python"),
        ("SANDBOX_LANGUAGES", "../etc"),
        ("SANDBOX_LOG_LEVEL", "loud"),
        ("DOCKER_HOST", "docker.sock"),
        ("DOCKER_HOST", "npipe:////./pipe/docker_engine"),
        ("DOCKER_HOST", "unix://var/run/docker.sock"),
        ("DOCKER_HOST", "unix:///"),
        ("DOCKER_HOST", "tcp://"),
        ("DOCKER_HOST", "tcp:///path"),
        ("DOCKER_HOST", "ssh://host"),
        ("DOCKER_HOST", "tcp://host:99999"),
        ("DOCKER_HOST", "tcp://host:0"),
        ("DOCKER_HOST", "tcp://host:port"),
        ("DOCKER_HOST", "tcp://[::1"),
    ],
)
def test_a_wrong_value_is_refused_with_the_variables_name(name, text):
    """SF-24: never a silent default."""
    with pytest.raises(SettingsError) as caught:
        read_settings({name: text})
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize("text", ["5/second", "100/minute", "1000 per hour", "10/2 minutes", ""])
def test_a_rate_is_read(text):
    assert read_settings({"SANDBOX_RATE_LIMIT": text}).rate_limit == (text or None)


def test_an_ipv6_address_may_stand_in_brackets():
    assert read_settings({"SANDBOX_HOST": "[::1]"}).host == "::1"


def test_a_slip_in_a_name_is_refused_with_a_hint():
    with pytest.raises(SettingsError, match=r"^SANDBOX_TIMEOUTS is no setting; did you mean SANDBOX_TIMEOUT\?$"):
        read_settings({"SANDBOX_TIMEOUTS": "10s"})


def test_a_foreign_variable_with_the_prefix_is_only_warned_about(caplog):
    read_settings({"SANDBOX_EXECUTOR_MANAGER_IMAGE": "x"})

    assert "SANDBOX_EXECUTOR_MANAGER_IMAGE is no setting" in caplog.text


def test_the_redis_password_is_shown_nowhere():
    settings = read_settings({"SANDBOX_REDIS_URL": "redis://:hunter2@db/0"})
    assert "hunter2" not in repr(settings)
    assert settings.redis_url.reveal() == "redis://:hunter2@db/0"
    assert settings.redis_url == Secret("redis://:hunter2@db/0")

    with pytest.raises(SettingsError) as caught:
        read_settings({"SANDBOX_REDIS_URL": "reds://:hunter2@db/0"})
    assert "hunter2" not in str(caught.value)


def test_command_line_options_win_over_the_environment():
    assert read_settings({"SANDBOX_PORT": "1"}, port="2").port == 2
    assert default_settings(timeout_seconds="2s").timeout_seconds == 2


def test_the_table_names_every_variable_with_its_default():
    table = markdown_table()

    for variable in VARIABLES.values():
        assert f"| `{variable.name}` |" in table
        assert variable.help in table


@pytest.mark.parametrize(
    "text", ["unix:///run/user/1000/docker.sock", "tcp://host:2376", "tcp://[::1]:2375/", "https://host:2376"]
)
def test_an_engines_address_is_taken_as_it_is(text):
    assert read_settings({"DOCKER_HOST": text}).docker_host == text


def test_an_empty_engines_address_is_as_none():
    assert read_settings({"DOCKER_HOST": ""}).docker_host == read_settings({}).docker_host


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SANDBOX_MAX_CONTAINERS": "2"}, "SANDBOX_MAX_CONTAINERS has no effect without SANDBOX_REDIS_URL"),
        ({"SANDBOX_MAX_CONTAINERS": "2", "SANDBOX_REDIS_URL": "redis://host"}, ""),
        ({"DOCKER_CERT_PATH": "."}, "DOCKER_CERT_PATH has no effect"),
        ({"DOCKER_CERT_PATH": ".", "DOCKER_HOST": "tcp://host:2376"}, ""),
        ({"DOCKER_HOST": "tcp://host:2376"}, "DOCKER_HOST=tcp://host:2376 is asked without TLS"),
        ({"DOCKER_HOST": "tcp://10.0.0.1:2375"}, "DOCKER_HOST=tcp://10.0.0.1:2375 is asked without TLS"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:2375"}, ""),
        ({"DOCKER_HOST": "http://[::1]:2375"}, ""),
        ({"DOCKER_HOST": "tcp://localhost:2375"}, ""),
    ],
)
def test_a_setting_without_effect_or_protection_is_warned_about(environ, words, caplog, tmp_path):
    """An operator who bounds the containers and is not heard finds out when the host is full."""
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    read_settings({name: value.replace(".", str(tmp_path), value == ".") for name, value in environ.items()})

    assert [words in record.getMessage() for record in caplog.records] == [True] * bool(words)


def test_a_drain_that_cuts_runs_short_is_warned_about(caplog):
    read_settings({"SANDBOX_TIMEOUT": "1m"})
    assert "SANDBOX_DRAIN_TIMEOUT is shorter than SANDBOX_TIMEOUT" in caplog.text

    caplog.clear()
    read_settings({"SANDBOX_TIMEOUT": "1m", "SANDBOX_DRAIN_TIMEOUT": "1m"})
    assert not caplog.text


def test_what_kubernetes_tells_of_a_service_of_this_name_is_no_slip(caplog):
    """`SANDBOX_SVC_PORT` was taken for a slip of `SANDBOX_PORT`, and the pod did not start."""
    read_settings({"SANDBOX_SVC_PORT": "tcp://10.0.0.1:9385", "SANDBOX_SVC_SERVICE_HOST": "10.0.0.1"})
    assert not caplog.text


def test_whoever_may_wait_has_a_connection():
    settings = read_settings({"SANDBOX_QUEUE_SIZE": "5000", "SANDBOX_LANGUAGES": "python,nodejs"})
    assert settings.max_connections == 1000 + 2 * (4 + 5000)
