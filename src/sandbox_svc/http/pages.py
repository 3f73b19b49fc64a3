"""The pages for browsers: files of this package, read once, sent with a policy that lets nothing else in."""

from __future__ import annotations

from importlib import resources
from typing import Final

from sandbox_svc.http.reply import Headers, Reply

MEDIA_TYPES: Final = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}

# Nothing inline, nothing from elsewhere; pictures that programs made are blobs of the page itself. A blob that was
# opened as a page would inherit this, so not even then could it run a script.
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Headers] = [
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # They are small, and one from before an update would not fit the service any more.
    (b"cache-control", b"no-cache"),
    # `/` has two answers.
    (b"vary", b"Accept"),
]


def read_pages() -> dict[str, Reply]:
    """Every file of the pages, by its name."""
    folder = resources.files("sandbox_svc.http") / "page"
    return {
        file.name: Reply(
            200, [(b"content-type", MEDIA_TYPES[file.name.rpartition(".")[2]]), *HEADERS], file.read_bytes()
        )
        for file in folder.iterdir()
    }
