"""What can be started now: the languages whose images the engine has."""

from __future__ import annotations

from collections.abc import Mapping

from sandbox_svc.clock import Clock, Limit
from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.pool.pool import Pool
from sandbox_svc.runtime import Runtime
from sandbox_svc.runtime.languages import Language


class Inventory:
    """The languages of the last look at the engine; a language stays known when its image has gone."""

    def __init__(self, runtime: Runtime, pool: Pool, clock: Clock, *, limit_seconds: float) -> None:
        self._runtime = runtime
        self._pool = pool
        self._clock = clock
        self._limit_seconds = limit_seconds
        self._languages: dict[str, Language] = {}

    @property
    def languages(self) -> Mapping[str, Language]:
        return self._languages

    async def refresh(self) -> None:
        """Look again, and tell the pool of new images. Raises `RuntimeUnavailable` or `TimeoutError`."""
        async with Limit(self._clock, self._limit_seconds):
            found = await self._runtime.languages()
        for name in self._pool.languages:
            language = found.get(name)
            if language is not None:
                self._languages[name] = language
                self._pool.set_generation(name, language.image_id)

    def language(self, name: str) -> Language:
        """The language with its newest known image. Raises `RuntimeUnavailable`."""
        try:
            return self._languages[name]
        except KeyError:
            raise RuntimeUnavailable(f"no image of language {name!r} is installed") from None
