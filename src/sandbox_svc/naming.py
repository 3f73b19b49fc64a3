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

    def resolve(self, name: str) -> Served:
        """Return the language called `name`.

        Raises `UnknownLanguage`, or `RuntimeUnavailable` when it is enabled but its image is missing.
        """
        served = self._by_name.get(name)
        if served is not None and self._known().get(served.name) is served.language:
            return served
        self._rebuild()
        served = self._by_name.get(name)
        if served is not None:
            return served
        if name in self._enabled:
            raise RuntimeUnavailable(f"The image of language {name} is missing")
        raise UnknownLanguage(f"language must be one of {', '.join(sorted({*self._by_name, *self._enabled}))}")

    def name_of(self, name: str) -> str:
        """The language's own name if it was resolved before, `-` for anything else: safe for logs and labels."""
        served = self._by_name.get(name)
        return "-" if served is None else served.name

    def _rebuild(self) -> None:
        known = self._known()
        served = {
            name: Served(known[name], TemplateChooser(known[name].manifest)) for name in self._enabled if name in known
        }
        # Names win over aliases, and the language enabled first over later ones.
        aliases = {alias: one for one in reversed(served.values()) for alias in one.language.manifest.aliases}
        self._by_name = aliases | served
