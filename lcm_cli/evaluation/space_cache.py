"""A space with a cache, so that systems and tasks share encoded and decoded sentences.

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
    """A space whose `encode` and `decode` cache their results; everything else is the space's."""

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
        """Return the best text of each concept, (S,); `to` is one language, or one per concept.

        The lengths of the sentences `like` (S,), in `like_lang`, bound the lengths of the texts.
        """
        codes = [to] * len(concepts_SD) if isinstance(to, str) else to
        limits = self._space.limits(like, like_lang)
        texts = [""] * len(codes)
        for code in dict.fromkeys(codes):
            places = [i for i, c in enumerate(codes) if c == code]
            own_limits = [limits[i] for i in places]
            hypotheses = self.decode(concepts_SD[places], [code], limits=own_limits)[code]
            for place, best in zip(places, hypotheses, strict=True):
                texts[place] = best[0].text
        return texts

    def encode(
        self,
        sentences: Sequence[str],
        lang: str | Sequence[str],
        progress: Progress | None = None,
    ) -> "Encoded":
        """Encode sentences like `Space.encode`; a truncation is reported the first time only."""
        from lcm_cli.space import Encoded

        codes = [lang] * len(sentences) if isinstance(lang, str) else lang
        keys = list(zip(codes, sentences, strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._concepts]
        encoded = self._space.encode([text for _, text in new], [code for code, _ in new])
        self._concepts.update(zip(new, encoded.concepts, strict=True))
        if progress:
            progress(len(keys))
        empty = np.empty((0, self._space.dim), dtype=np.float32)
        concepts = [self._concepts[key] for key in keys]
        # The space counts from the first new sentence; the caller, from the first of all.
        cut = [replace(c, index=keys.index(new[c.index])) for c in encoded.truncated]
        return Encoded(np.stack(concepts) if concepts else empty, cut)

    def decode(
        self,
        concepts: np.ndarray,
        to: Sequence[str],
        options: "DecodeOptions | None" = None,
        *,
        limits: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> "dict[str, list[list[Text]]]":
        """Decode concepts (S, D) like `Space.decode`."""
        from lcm_cli.space import DecodeOptions

        options = options or DecodeOptions()
        concepts_SD = np.ascontiguousarray(concepts, dtype=np.float32)
        limits = [options.max_tokens] * len(concepts_SD) if limits is None else limits
        for lang in to:
            self._decode_new(concepts_SD, lang, options, limits)
        if progress:
            progress(len(concepts_SD) * len(to))
        return {
            lang: [
                self._texts[x_D.tobytes(), lang, limit, options]
                for x_D, limit in zip(concepts_SD, limits, strict=True)
            ]
            for lang in to
        }

    def _decode_new(
        self, concepts_SD: np.ndarray, lang: str, options: "DecodeOptions", limits: Sequence[int]
    ) -> None:
        """Decode and cache the concepts that are not cached yet."""
        keys = [
            (x_D.tobytes(), lang, limit, options)
            for x_D, limit in zip(concepts_SD, limits, strict=True)
        ]
        new = {key: place for place, key in enumerate(keys) if key not in self._texts}
        if new:
            places = list(new.values())
            own_limits = [limits[place] for place in places]
            texts = self._space.decode(concepts_SD[places], [lang], options, limits=own_limits)
            self._texts.update(zip(new, texts[lang], strict=True))
