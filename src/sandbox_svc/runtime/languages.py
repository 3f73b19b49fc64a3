"""What an image says about its language: the manifest that travels as an image label."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from sandbox_svc.errors import RuntimeUnavailable

LANGUAGE_LABEL = "sandbox_svc.language"
MANIFEST_LABEL = "sandbox_svc.manifest"
PROFILE_LABEL = "sandbox_svc.profile"


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A set of modules kept loaded in a process that forks user processes.

    `when` is a regular expression; a source in which it matches is run from this template. Choosing a template that
    lacks a module costs time, never correctness.
    """

    name: str
    preload: tuple[str, ...] = ()
    when: str | None = None


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A first program for people who try the language; nothing runs it by itself."""

    code: str
    arguments: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The service's part of `images/<language>/manifest.json`; the rest is for the supervisor in the image."""

    language: str
    aliases: tuple[str, ...] = ()
    source_name: str
    analyser: str | None = None
    templates: tuple[Template, ...]
    baseline_memory: str = "128m"
    """What supervisor and templates occupy; added to the caller's memory limit."""
    example: Example | None = None


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """A language that can be served: its manifest and the image that carries it."""

    manifest: Manifest
    image_id: str
    """Generation: a rebuilt image has another id, and containers of the old one are replaced."""
    profile: str | None = None
    """Where it is a profile of another language, `base`: the same with more packages."""

    @property
    def name(self) -> str:
        return self.manifest.language

    @property
    def base(self) -> str:
        """The language that callers name; for a profile, beside it."""
        return self.name if self.profile is None else self.name.removesuffix(f"-{self.profile}")


class TemplateChooser:
    """Picks the template that a source needs, by the patterns of a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._default = manifest.templates[0].name
        # Later templates hold more modules, so the last match wins.
        self._patterns = [(t.name, re.compile(t.when.encode())) for t in reversed(manifest.templates) if t.when]

    def choose(self, source: bytes) -> str:
        for name, pattern in self._patterns:
            if pattern.search(source):
                return name
        return self._default


_decoder: msgspec.json.Decoder[Manifest] = msgspec.json.Decoder(Manifest)


def parse_manifest(labels: dict[str, Any]) -> Manifest:
    """Read the manifest of an image. Raises `RuntimeUnavailable` naming what is wrong with it."""
    try:
        manifest = _decoder.decode(labels[MANIFEST_LABEL])
        for template in manifest.templates:
            # As `TemplateChooser` does: what is a pattern for text may be none for bytes.
            re.compile((template.when or "").encode())
    # The last two are what `re` says of a repetition or a depth beyond all bounds.
    except (KeyError, ValueError, msgspec.MsgspecError, re.error, OverflowError, RecursionError) as error:
        raise RuntimeUnavailable(f"image of language {labels.get(LANGUAGE_LABEL)!r} has no usable manifest") from error
    if not manifest.templates:
        raise RuntimeUnavailable(f"manifest of language {manifest.language!r} names no template")
    return manifest
