"""A space that remembers: what several systems or tasks encode or decode is computed once.

Shapes: S sentences, D concept dim.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.progress import Progress

if TYPE_CHECKING:
    from lcm_cli.space import DecodeOptions, Encoded, Space, Text


class SharedSpace:
    """A space whose `encode` and `decode` keep their results, by content. Else like the space."""

    def __init__(self, space: "Space") -> None:
        self._space = space
        self._concepts: dict[tuple[str, str], np.ndarray] = {}
        self._texts: dict[tuple[bytes, str, int, DecodeOptions], list[Text]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._space, name)

    def concepts(self, sentences: Sequence[str], lang: str) -> np.ndarray:
        """Return the concepts of sentences in one language, (S, D)."""
        return self.encode(sentences, lang).concepts

    def texts(
        self,
        concepts_SD: np.ndarray,
        to: str | Sequence[str],
        like: Sequence[str],
        like_lang: str | Sequence[str],
    ) -> list[str]:
        """Return the best text of each concept; `to` is one language, or one a concept.

        The sentences `like` them, in `like_lang`, tell how long the texts may become.
        """
        codes = [to] * len(concepts_SD) if isinstance(to, str) else to
        limits = self._space.limits(like, like_lang)
        found = [""] * len(codes)
        for code in dict.fromkeys(codes):
            places = [i for i, c in enumerate(codes) if c == code]
            wanted = [limits[i] for i in places]
            texts = self.decode(concepts_SD[places], [code], limits=wanted)[code]
            for place, best in zip(places, texts, strict=True):
                found[place] = best[0].text
        return found

    def encode(
        self,
        sentences: Sequence[str],
        lang: str | Sequence[str],
        progress: Progress | None = None,
    ) -> "Encoded":
        """Encode sentences, see `Space.encode`; truncations are told the first time only."""
        from lcm_cli.space import Encoded

        codes = [lang] * len(sentences) if isinstance(lang, str) else lang
        keys = list(zip(codes, sentences, strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._concepts]
        encoded = self._space.encode([text for _, text in new], [code for code, _ in new])
        self._concepts.update(zip(new, encoded.concepts, strict=True))
        if progress:
            progress(len(keys))
        empty = np.empty((0, self._space.dim), dtype=np.float32)
        rows = [self._concepts[key] for key in keys]
        cut = [replace(c, index=keys.index(new[c.index])) for c in encoded.truncated]
        return Encoded(np.stack(rows) if rows else empty, cut)

    def decode(
        self,
        concepts: np.ndarray,
        to: Sequence[str],
        options: "DecodeOptions | None" = None,
        *,
        limits: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> "dict[str, list[list[Text]]]":
        """Decode concepts (S, D), see `Space.decode`."""
        from lcm_cli.space import DecodeOptions

        options = options or DecodeOptions()
        rows = np.ascontiguousarray(concepts, dtype=np.float32)
        most = [options.max_tokens] * len(rows) if limits is None else limits
        for lang in to:
            self._decode(rows, lang, options, most)
        if progress:
            progress(len(rows) * len(to))
        return {
            lang: [
                self._texts[row.tobytes(), lang, limit, options]
                for row, limit in zip(rows, most, strict=True)
            ]
            for lang in to
        }

    def _decode(
        self, rows: np.ndarray, lang: str, options: "DecodeOptions", limits: Sequence[int]
    ) -> None:
        keys = [(row.tobytes(), lang, n, options) for row, n in zip(rows, limits, strict=True)]
        new = {key: place for place, key in enumerate(keys) if key not in self._texts}
        if new:
            places = list(new.values())
            wanted = [limits[place] for place in places]
            found = self._space.decode(rows[places], [lang], options, limits=wanted)[lang]
            self._texts.update(zip(new, found, strict=True))
