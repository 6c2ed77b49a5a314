"""Words of a text in any script, for metrics over words.

One rule serves all languages, so that their scores are computed alike. The text is normalized
(NFKC) and case-folded; a word is a run of letters, marks and digits, and all else is dropped. In
scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan), each character is a
word, together with its marks. There is no stemming.
"""

import re
import unicodedata

_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uaa60-\uaa7f"
    "\U00020000-\U0003ffff]"
)
_JOINERS = "\u200c\u200d"  # occur inside words in Persian and the Indic scripts


def words(text: str) -> list[str]:
    """Return the words of `text`, an empty list if it has neither letters nor digits."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(c if _belongs(c) else " " for c in folded)
    pieces = (piece for word in spaced.split() for piece in _pieces(word))
    return [piece for piece in pieces if _has_letter_or_digit(piece)]


class WordTokenizer:
    """`words` with the tokenizer interface of rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text`."""
        return words(text)


def _belongs(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in _JOINERS


def _has_letter_or_digit(piece: str) -> bool:
    return any(unicodedata.category(character)[0] in "LN" for character in piece)


def _pieces(word: str) -> list[str]:
    """Split a word at each character of a script without spaces."""
    if not _UNSPACED.search(word):
        return [word]
    pieces: list[str] = []
    for character in word:
        mark = unicodedata.category(character)[0] == "M"
        unspaced = bool(_UNSPACED.match(character))
        continues = pieces and not unspaced and not _UNSPACED.match(pieces[-1])
        if pieces and (mark or continues):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces
