"""SONAR's tokenizer: a sentencepiece model plus one token per language.

Ids: 0 <pad>, 1 <unk>, 2 <s>, 3 </s>, then the pieces (sentencepiece id + 1, since its model has no
<pad>), the languages in the order of the space's card, and three mining tags. A source sequence is
[lang] x </s>; a target sequence is </s> [lang] x </s>.
"""

from collections.abc import Sequence
from pathlib import Path

from lcm_cli.errors import IntegrityError

PAD, UNK, BOS, EOS = 0, 1, 2, 3
TAGS = 3  # <MINED_DATA>, <MMT_BT_DATA>, <SMT_BT_DATA>: only used in the training of NLLB


class Tokenizer:
    """Text to token ids and back, for the languages of one space."""

    def __init__(self, path: Path, languages: Sequence[str]) -> None:
        """Load the sentencepiece model at `path`. Raises IntegrityError if it is not one."""
        from sentencepiece import SentencePieceProcessor

        try:
            self._pieces = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise IntegrityError(f"{path} is not a sentencepiece model: {error}") from error
        self.first_language = self._pieces.get_piece_size() + 1
        self._languages = {code: self.first_language + i for i, code in enumerate(languages)}
        self.vocabulary = self.first_language + len(languages) + TAGS

    def knows(self, code: str) -> bool:
        """Return whether `code` is one of the tokenizer's languages."""
        return code in self._languages

    def language(self, code: str) -> int:
        """Return the id of a language's token."""
        return self._languages[code]

    def encode(self, texts: Sequence[str], lang: str) -> list[list[int]]:
        """Return the source ids of each text: [lang] x </s>.

        Raises IntegrityError for text with an unpaired surrogate.
        """
        prefix = self.language(lang)
        try:
            rows = self._pieces.encode(list(texts))
        except (TypeError, UnicodeEncodeError) as error:  # depends on sentencepiece's version
            raise IntegrityError(f"not Unicode text: {_first_surrogate(texts)!r}") from error
        return [[prefix, *(piece + 1 for piece in row), EOS] for row in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids; control and language tokens are skipped."""
        kept = [[i - 1 for i in row if i == UNK or EOS < i < self.first_language] for row in rows]
        return list(self._pieces.decode(kept))


def _first_surrogate(texts: Sequence[str]) -> str:
    return next(text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text))
