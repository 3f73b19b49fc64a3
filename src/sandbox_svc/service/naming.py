"""The names by which callers know the languages that are served: their own and their aliases, exactly as written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sandbox_svc.errors import RuntimeUnavailable, UnknownLanguage
from sandbox_svc.runtime.languages import Language, TemplateChooser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Served(msgspec.Struct, frozen=True):
    """A language that can be run now, with what is prepared once per image."""

    language: Language
    chooser: TemplateChooser

    @property
    def name(self) -> str:
        return self.language.name


class LanguageNames:
    """Resolves names over a view of the known languages that changes when images do."""

    def __init__(self, enabled: Iterable[str], known: Callable[[], Mapping[str, Language]]) -> None:
        self._enabled = tuple(enabled)
        self._known = known
        self._by_name: dict[str, Served] = {}

    @property
    def enabled(self) -> tuple[str, ...]:
        """Names of the languages that should be served, whether or not their images are there."""
        return self._enabled

    def served(self) -> tuple[Served, ...]:
        """The languages that can be run now, in the order in which they were enabled."""
        self._rebuild()
        return tuple(self._by_name[name] for name in self._enabled if name in self._by_name)

    def resolve(self, name: str, profile: str | None = None) -> Served:
        """Return the language called `name`, or that profile of it.

        Raises `UnknownLanguage`, or `RuntimeUnavailable` when it is enabled but its image is missing.
        """
        full = _full_name(name, profile)
        served = self._by_name.get(full)
        if served is None or self._known().get(served.name) is not served.language:
            self._rebuild()
            served = self._by_name.get(full)
        if served is not None and profile in (None, served.language.profile):
            return served
        if served is None and full in self._enabled:
            raise RuntimeUnavailable(f"The image of language {full} is missing")
        names = {*self._by_name, *self._enabled}
        profiles = self._profiles(name)
        if profile is not None and (profiles or name in names):
            there = f"be one of {', '.join(profiles)}" if profiles else "be left out: this language has none here"
            raise UnknownLanguage(f"profile must {there}")
        raise UnknownLanguage(f"language must be one of {', '.join(sorted(names))}")

    def name_of(self, name: str, profile: str | None = None) -> str:
        """The language's own name where it is enabled, of an alias where it was resolved before, `-` for anything else:
        safe for logs and labels.
        """
        full = _full_name(name, profile)
        served = self._by_name.get(full)
        if served is not None:
            return served.name
        # Its image may be missing, and then it matters whose runs cannot be.
        return full if full in self._enabled else "-"

    def _profiles(self, name: str) -> list[str]:
        """The profiles that are served of the language called `name`."""
        known = {served.language.profile for served in self._by_name.values()} - {None}
        return sorted(one for one in known if one is not None and _full_name(name, one) in self._by_name)

    def _rebuild(self) -> None:
        known = self._known()
        served = {
            name: Served(known[name], TemplateChooser(known[name].manifest)) for name in self._enabled if name in known
        }
        # Names win over aliases, and the language enabled first over later ones.
        aliases = {alias: one for one in reversed(served.values()) for alias in one.language.manifest.aliases}
        self._by_name = aliases | served


def _full_name(name: str, profile: str | None) -> str:
    """A profile is a language of its own, with its own containers; its name and aliases end in that of the profile."""
    return name if profile is None else f"{name}-{profile}"
