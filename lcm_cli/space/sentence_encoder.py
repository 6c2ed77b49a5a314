"""A space under the calling conventions of sentence-transformers.

Space.encode returns concepts together with the sentences that were truncated; programs written for
sentence-transformers expect an `encode` that returns vectors alone, which this module provides.

Shapes: S texts, D concept dim.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lcm_cli.errors import UsageError
from lcm_cli.progress import ignore
from lcm_cli.space.space import Space
from lcm_cli.text.detect import rank_languages, sample_text


class SentenceEncoder:
    """A space whose `encode` follows sentence-transformers.

    `lang` names the language of the texts, unless a call names another.
    """

    def __init__(self, space: Space, lang: str | None = None) -> None:
        """Raise NotFoundError if the space does not have the language `lang`."""
        self.space = space
        self.lang = lang and space.find_language(lang)

    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        lang: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
    ) -> np.ndarray | Tensor | list[Tensor]:
        """Return the concepts of texts, float32: (S, D), or (D,) for a single string.

        The result is an array; with `convert_to_tensor` a tensor on the space's device; with
        neither conversion a list of tensors. Each text is encoded as one sentence, and only its
        first tokens up to the encoder's limit count. `lang` is the language of the texts, or one
        per text. Without it, and without the encoder's own, each text is taken to be in its most
        likely language among those of the space, or, if it has no letters, in the first of them.
        `show_progress_bar` draws on stderr. `batch_size` has no effect: a space forms batches by
        tokens (see load_space). Raises UsageError for a prompt, which a space does not have, and
        NotFoundError for a language that the space does not have.
        """
        if prompt or prompt_name:
            name = prompt_name or prompt
            raise UsageError(f"{self.space.name} has no prompts: {name!r}", "leave the prompt out")
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        codes = self._languages(texts, lang)
        with _bar(len(texts), bool(show_progress_bar)) as progress:
            concepts_SD = self.space.encode(texts, codes, progress).concepts
        found = torch.from_numpy(concepts_SD).to(self.space.device)
        if normalize_embeddings:
            found = F.normalize(found, dim=1)
        if convert_to_tensor:
            return found[0] if single else found
        if not convert_to_numpy:
            return found[0] if single else list(found)
        array = found.cpu().numpy()
        return array[0] if single else array

    def _languages(self, texts: Sequence[str], lang: str | Sequence[str] | None) -> Sequence[str]:
        lang = lang or self.lang
        if lang is None:
            return [self._likely_language(text) for text in texts]
        if isinstance(lang, str):
            return [self.space.find_language(lang)] * len(texts)
        if len(lang) != len(texts):
            message = f"{len(lang)} languages for {len(texts)} texts"
            raise UsageError(message, "pass one language, or one per text")
        known = {name: self.space.find_language(name) for name in dict.fromkeys(lang)}
        return [known[name] for name in lang]

    def _likely_language(self, text: str) -> str:
        languages = self.space.languages
        words = sample_text(text)
        if any(map(str.isalpha, words)):
            # Unlike in documents, a guess is better than an error: a call has many short texts.
            for code, _ in rank_languages(words, languages):
                if code in languages:
                    return code
        return languages[0]


@contextmanager
def _bar(total: int, visible: bool) -> Iterator[Callable[[int], None]]:
    """Yield a Progress that advances a bar on stderr, or does nothing."""
    if not visible:
        yield ignore
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("encode", total=total)
        yield lambda done: bar.advance(task, done)
