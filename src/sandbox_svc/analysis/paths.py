"""Which paths belong to the system: one list for all languages."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from sandbox_svc.analysis import common_rules
from sandbox_svc.analysis.texts import HOLE

Access = Literal["read", "list", "write"]

WORKSPACE: Final = "/workspace"
_MAX_PATH: Final = 4096

_SECRET: Final = re.compile(
    r"""
      /etc/(?:passwd|shadow|gshadow|group|sudoers|security|ssh|ssl/private|krb5|docker|kubernetes|cron
             |pki/private
             |ld\.so\.preload|master\.passwd|opasswd|vault|pam\.d|mysql|redis)[^/]*(?:/.*)?
    | /root(?:/.*)?
    | (?:/.*)?/\.(?:ssh|aws|gnupg|kube|docker|azure|config/gcloud|netrc|pgpass|git-credentials
             |bash_history|python_history|node_repl_history|zsh_history|npmrc|pypirc|vault-token)(?:/.*)?
    | /home/[^/]+/\.env
    | (?!/(?:workspace|tmp)/[^\ufffc]*$)(?:/.*)?/id_(?:rsa|dsa|ecdsa|ed25519)
    | (?:/.*)?/(?:docker|containerd|crio|podman|dockershim|buildkitd)\.sock
    | /(?:var/)?run/(?:secrets|docker|containerd|podman|crio)(?:[/.].*)?
    | /var/(?:lib/(?:docker|kubelet|containerd|cloud)|spool|backups)(?:/.*)?
    | /opt/sandbox(?:/.*)?
    | /(?:host|hostfs|rootfs|boot)(?:/.*)?
    """,
    re.VERBOSE,
)
# The unknown folder may be anything, so only what is unmistakable counts.
_SECRET_ENDING: Final = re.compile(rf"{HOLE}+(?:/?\.\.)*/?etc/(?:passwd|shadow|sudoers|gshadow)")

_PROC: Final = re.compile(r"/proc(?:/.*)?")
_PROC_HARMLESS: Final = re.compile(
    r"/proc/(?:(?:cpuinfo|meminfo|loadavg|uptime|version|stat|vmstat|filesystems)|(?:self|thread-self)"
    r"/(?:status|statm|stat|io|limits|comm|schedstat|smaps_rollup|oom_score(?:_adj)?))"
)
_SYS: Final = re.compile(r"/sys(?:/.*)?")
_SYS_HARMLESS: Final = re.compile(
    r"/sys/fs/cgroup/(?:[\w.\ufffc-]+/)*(?:memory|cpu|cpuset|cpuacct|pids|io)\.[\w.]+|/sys/devices/system/cpu(?:/[\w/-]+)?"
)
_DEV: Final = re.compile(r"/dev(?:/.*)?")
_DEV_HARMLESS: Final = re.compile(r"/dev/(?:null|zero|full|u?random|std(?:in|out|err)|tty|shm(?:/.*)?|fd(?:/\d+)?)")

_LISTED: Final = frozenset(
    {
        "/",
        "/root",
        "/home",
        "/etc",
        "/proc",
        "/run",
        "/var",
        "/var/run",
        "/opt",
        "/bin",
        "/sbin",
        "/usr",
        "/boot",
        "/sys",
        "/dev",
    }
)
_WRITTEN: Final = re.compile(
    r"/|/(?:etc|usr|bin|sbin|lib|lib32|lib64|libx32|boot|opt|root|sys|proc|run|srv|var(?!/tmp(?:/|$)))(?:/.*)?"
)

METADATA_HOSTS: Final = frozenset(
    {
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "fd00:ec2::254",
        "100.100.100.200",
        "192.0.0.192",
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.com",
        "instance-data",
    }
)


# Public name services that give the address which stands in the name.
_EMBEDDED: Final = re.compile(
    r"(?:^|[.-])169[.-]254[.-]169[.-]254\.(?:nip\.io|sslip\.io|xip\.io|traefik\.me)$|(?:^|[.-])a9fea9fe\.(?:nip|sslip)\.io$"
)


def normal(path: str) -> str:
    """Return the absolute path that the text means for a program in `/workspace`, holes kept."""
    if path.startswith("file:"):
        path = unquote(path.removeprefix("file:").removeprefix("//").removeprefix("localhost"))
    if path.startswith("~"):
        # Whoever's home it is: what matters lies below it.
        path = f"/home/user{path[1:]}"
    joined = posixpath.normpath(posixpath.join(WORKSPACE, path))
    return joined[1:] if joined.startswith("//") else joined


def judge(path: str, access: Access) -> str | None:
    """Return the id of the rule that forbids this access to the path, None where nothing does."""
    if not path or len(path) > _MAX_PATH or "\n" in path:
        return None
    if _SECRET_ENDING.fullmatch(path):
        return common_rules.SECRET_FILE
    where = normal(path)
    if _SECRET.fullmatch(where):
        return common_rules.SECRET_FILE
    for system, harmless in ((_PROC, _PROC_HARMLESS), (_SYS, _SYS_HARMLESS), (_DEV, _DEV_HARMLESS)):
        if system.fullmatch(where):
            if not harmless.fullmatch(where):
                return common_rules.SECRET_FILE
            return common_rules.SYSTEM_WRITE if access == "write" and system is not _DEV else None
    if access == "write" and _WRITTEN.fullmatch(where):
        return common_rules.SYSTEM_WRITE
    if access == "list" and where.rstrip("*/").rstrip("/") in _LISTED | {""}:
        return common_rules.SYSTEM_LISTING
    return None


def is_folder(path: str) -> bool:
    """Tell whether the path is one of the system's well-known folders itself."""
    return normal(path).rstrip("*/") in _LISTED | {""}


def is_metadata(address: str) -> bool:
    """Tell whether a URL, or a bare host, is a cloud's metadata service; numbers in any notation count."""
    if len(address) > _MAX_PATH:
        return False
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:
        return False
    host = host.rstrip(".")
    if host in METADATA_HOSTS or _EMBEDDED.search(host):
        return True
    number = _ipv4_number(host)
    return _is_metadata_in_ipv6(host) if number is None else number in (0xA9FEA9FE, 0x646464C8)


def _ipv4_number(host: str) -> int | None:
    """Read one to four numbers in any base, the last of which fills what is left, as `inet_aton` and URLs do."""
    parts = host.split(".")
    try:
        numbers = [int(part, 8) if part[:1] == "0" and part.isdigit() else int(part, 0) for part in parts]
    except ValueError:
        return None
    if len(parts) > 4 or not 0 <= numbers[-1] < 1 << 8 * (5 - len(parts)):
        return None
    return sum(number << 8 * (3 - place) for place, number in enumerate(numbers[:-1])) + numbers[-1]


def _is_metadata_in_ipv6(host: str) -> bool:
    """`::ffff:169.254.169.254`, and any spelling of an IPv6 address."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return str(address.ipv4_mapped or address.sixtofour or address) in METADATA_HOSTS
