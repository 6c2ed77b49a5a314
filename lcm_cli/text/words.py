"""Words of a text in any script, for the metrics that count words.

One rule for all languages, so that scores of different ones are made alike: the text is normalized
(NFKC) and case-folded; a word is a run of letters, marks and digits, whatever stands between being
left out. Where nothing stands between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan)
each character counts as a word, together with the marks on it. There is no stemming.
"""

import re
import unicodedata

_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uaa60-\uaa7f"
    "\U00020000-\U0003ffff]"
)
_JOINERS = "\u200c\u200d"  # parts of words in Persian and in the scripts of India


def words(text: str) -> list[str]:
    """Return the words of `text`; nothing if it has no letter and no digit."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(c if _belongs(c) else " " for c in folded)
    return [piece for word in spaced.split() for piece in _pieces(word) if _says_something(piece)]


class WordTokenizer:
    """`words` in the form that rouge-score wants."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text`."""
        return words(text)


def _belongs(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or character in _JOINERS


def _says_something(piece: str) -> bool:
    return any(unicodedata.category(character)[0] in "LN" for character in piece)


def _pieces(word: str) -> list[str]:
    """Part a word at each character of a script without spaces."""
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
