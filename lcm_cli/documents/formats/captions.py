"""Captions: the sentences of speech at their times, as SubRip or WebVTT."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lcm_cli.documents.formats.skeleton import Pair, Passage
from lcm_cli.documents.formats.subtitles import lines

SUFFIXES = (".srt", ".vtt")


class Captions:
    """The skeleton of a file with one cue for each sentence; `times` are in seconds."""

    is_text = True

    def __init__(
        self, sentences: Sequence[str], times: Sequence[tuple[float, float]], suffix: str
    ) -> None:
        self.suffix = suffix
        self.passages = [Passage(sentence, number) for number, sentence in enumerate(sentences)]
        self._times = times

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with a cue for each passage."""
        texts = [" ".join(new for _, new in pairs) for pairs in sentences]
        cues = [
            self._cue(number, times, "\n".join(lines(text, lang)))
            for number, (times, text) in enumerate(zip(self._times, texts, strict=True), start=1)
        ]
        head = "WEBVTT\n\n" if self.suffix == ".vtt" else ""
        return (head + "\n".join(cues)).encode()

    def _cue(self, number: int, times: tuple[float, float], text: str) -> str:
        start, end = (self._clock(seconds) for seconds in times)
        if self.suffix == ".vtt":
            return f"{start} --> {end}\n{html.escape(text, quote=False)}\n"
        return f"{number}\n{start} --> {end}\n{text.replace('-->', '->')}\n"

    def _clock(self, seconds: float) -> str:
        whole, thousandths = divmod(round(1000 * seconds), 1000)
        point = "." if self.suffix == ".vtt" else ","
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours:02}:{minutes:02}:{whole % 60:02}{point}{thousandths:03}"
