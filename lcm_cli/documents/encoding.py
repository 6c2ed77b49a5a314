"""Decoding of UTF-8 text, with errors that name the first bad byte and the likely encoding."""

import codecs
import re
import shlex

from lcm_cli.errors import IntegrityError

STDIN = "stdin"  # the name of standard input in messages

_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SAMPLE = 1 << 16  # bytes examined to guess an encoding
# Characters frequent in any text of their language, and rare in text decoded wrongly.
_KANA = re.compile(r"[\u3041-\u30fe]")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")
_COMMON_HAN = re.compile(r"[的一是了不在有人我他這这\u3001\u3002\uff0c]")
_CYRILLIC = re.compile(r"[\u0430-\u044f]")  # lower case: KOI8-R and CP1251 swap the cases
# (name for iconv, Python's codec, frequent characters, their least share of the non-ASCII ones)
_GUESSES = (
    ("SHIFT_JIS", "cp932", _KANA, 0.25),
    ("EUC-JP", "euc_jp", _KANA, 0.25),
    ("EUC-KR", "cp949", _HANGUL, 0.8),
    ("GB18030", "gb18030", _COMMON_HAN, 0.05),
    ("BIG5", "big5", _COMMON_HAN, 0.05),
    ("CP1251", "cp1251", _CYRILLIC, 0.7),
    ("KOI8-R", "koi8_r", _CYRILLIC, 0.7),
)
_WESTERN = ("CP1252", "LATIN1")
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that surrogateescape could not decode


def decode_text(data: bytes, name: str, offset: int = 0, line: int = 0, utf8: bool = False) -> str:
    """Return `data` as text with `\\n` line ends and no byte order mark.

    For messages, `name` is that of the file, `offset` the position of `data` in it, and `line` the
    number of the line if `data` is one; `utf8` is whether an earlier line shows that the file is
    UTF-8. Raises IntegrityError with the offset of the first byte that is not UTF-8, or of a NUL.
    """
    place = f"{name} line {line}" if line else name
    if not offset:
        _refuse_utf16_and_32(data, name)
    body = data if offset else data.removeprefix(codecs.BOM_UTF8)
    offset += len(data) - len(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character takes at most 4 bytes, so one that is cut off has at most 3.
        if error.reason == "unexpected end of data" and error.start >= len(body) - 3:
            raise IntegrityError(
                f"{place} ends at byte {offset + error.start}, in the middle of a UTF-8 character",
                "the file was cut off: copy or download it again",
            ) from error
        if utf8 or mostly_utf8(body):
            raise _bad_bytes(body, name, place, offset, line) from error
        encoding = guess_encoding(body, error.start)
        raise _not_utf8(name, place, offset + error.start, encoding) from error
    if (nul := body.find(b"\0")) >= 0:
        raise IntegrityError(
            f"{place} is not text: it has a NUL byte at offset {offset + nul}",
            "if that byte is a mistake, remove it: tr -d '\\000' < FILE > NEW",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_text(text: str, name: str) -> None:
    """Raise IntegrityError if `text` has a NUL or, from a JSON escape, a lone surrogate."""
    if bad := re.search(r"[\ud800-\udfff\0]", text):
        what = "a NUL" if bad[0] == "\0" else f"half of a surrogate pair (\\u{ord(bad[0]):04x})"
        raise IntegrityError(
            f"{name}: its text has {what} at character {bad.start()}",
            "write the file again with a program that escapes whole characters",
        )


def _refuse_utf16_and_32(data: bytes, name: str) -> None:
    """Raise if `data` is UTF-16 or UTF-32, much of which is valid UTF-8 full of NULs."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            raise _not_utf8(name, name, 0, encoding)
    sample = data[: _SAMPLE & ~1]
    zeros = [sample[side::2].count(0) / max(1, len(sample) // 2) for side in (0, 1)]
    # Western text in UTF-16 has a zero in nearly every pair, always on the same side.
    for side, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if zeros[side] > 0.4 and zeros[1 - side] < 0.1:
            raise _not_utf8(name, name, sample.find(0), encoding)


def converting(command: str, name: str, suffix: str = "") -> str:
    """Return a shell command that converts the file `name` to a new one, or a pipe for stdin."""
    return command if name == STDIN else f"{command} {shlex.quote(name)} > NEW{suffix}"


def mostly_utf8(data: bytes) -> bool:
    """Return whether `data`, in spite of bad bytes, was written as UTF-8, at least in part."""
    text = data.decode("utf-8", "surrogateescape")
    bad = len(_ESCAPED.findall(text))
    good = sum(not c.isascii() for c in text) - bad
    # In Western encodings, letters hardly ever form a character of UTF-8; in others some do.
    western = bad > 0 and guess_encoding(data, len(_before_bad(text))) in _WESTERN
    return good > 0 and (good >= bad or western)


def _before_bad(text: str) -> bytes:
    """Return the bytes before the first bad one of text that was decoded with surrogateescape."""
    bad = _ESCAPED.search(text)
    return text[: bad.start() if bad else None].encode("utf-8")


def _bad_bytes(body: bytes, name: str, place: str, offset: int, line: int) -> IntegrityError:
    text = body.decode("utf-8", "surrogateescape")
    count, before = len(_ESCAPED.findall(text)), _before_bad(text)
    number = 1 + before.count(b"\n")
    where = "" if line else f" (line {number})"
    which = "1 byte," if count == 1 else f"{count:,} bytes, the first"
    remove = converting("iconv -f UTF-8 -t UTF-8 -c", name)
    return IntegrityError(
        f"{place} is UTF-8 except for {which} at byte {offset + len(before)}{where}",
        f"remove what is not UTF-8: {remove}; or write the file again in one encoding",
    )


def _not_utf8(name: str, place: str, offset: int, encoding: str) -> IntegrityError:
    convert = converting(f"iconv -f {encoding} -t UTF-8", name)
    return IntegrityError(
        f"{place} is not UTF-8 at byte {offset}; it is probably {encoding}",
        f"convert it: {convert}",
    )


def guess_encoding(data: bytes, start: int = 0) -> str:
    """Return the most likely encoding of `data`, which is not UTF-8, by its name for iconv.

    `start` is the position of the first byte that is not UTF-8. The result is for hints only.
    """
    sample = data[max(0, start - _SAMPLE // 2) :][:_SAMPLE]
    high = sum(byte >= 0x80 for byte in sample)
    letters = high + sum(chr(byte).isalpha() for byte in sample if byte < 0x80)
    # Scripts other than Latin encode nearly every letter with high bytes.
    if high > 0.4 * letters:
        for encoding, codec, frequent, share in _GUESSES:
            text = [c for c in sample.decode(codec, "replace") if ord(c) >= 0x80]
            if len(frequent.findall("".join(text))) > share * len(text):
                return encoding
    undefined = {0x81, 0x8D, 0x8F, 0x90, 0x9D}  # in CP1252
    cp1252, latin1 = _WESTERN
    return latin1 if undefined & set(sample) else cp1252
