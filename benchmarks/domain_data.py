"""Make a small parallel text of one domain: the interface messages of a program, from its catalogs.

Messages of 3 to 30 words without markup or placeholders are kept if they have translations into two
or more of the languages; 100 that have all four become the dev data.

    pip download --no-deps wagtail==8.0.1 && unzip wagtail-*.whl '*.po' -d catalogs
    python benchmarks/domain_data.py catalogs data     # data/domain.jsonl, data/domain-dev.jsonl
"""

import argparse
import json
import random
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import polib

CODES = {"de": "deu_Latn", "es": "spa_Latn", "fr": "fra_Latn", "nl": "nld_Latn"}
MARKUP = re.compile(r"[%{}<>&\n\\|_\[\]@#*]|https?:|\.\.\.|…")
DEV = 100


def main() -> None:
    """Write both files, and print their numbers of lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogs", type=Path, help="folder with LANGUAGE/LC_MESSAGES/*.po in it")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    lines = [line for line in read(options.catalogs).values() if len(line) >= 3]
    random.Random(0).shuffle(lines)
    dev = [line for line in lines if len(line) == 1 + len(CODES)][:DEV]
    options.output.mkdir(parents=True, exist_ok=True)
    write(options.output / "domain.jsonl", (line for line in lines if line not in dev))
    write(options.output / "domain-dev.jsonl", dev)


def read(folder: Path) -> dict[str, dict[str, str]]:
    """Return each message with its translations, by language."""
    lines: dict[str, dict[str, str]] = {}
    for path in sorted(folder.rglob("*/LC_MESSAGES/*.po")):
        if path.parts[-3] not in CODES:
            continue
        for entry in polib.pofile(str(path)).translated_entries():
            if not entry.msgid_plural and is_plain(entry.msgid) and is_plain(entry.msgstr):
                line = lines.setdefault(entry.msgid, {"eng_Latn": entry.msgid})
                line[CODES[path.parts[-3]]] = entry.msgstr
    return lines


def is_plain(text: str) -> bool:
    """Return whether a message is a few words without markup."""
    return not MARKUP.search(text) and 3 <= len(text.split()) <= 30 and len(text) <= 200


def write(path: Path, lines: Iterable[Mapping[str, str]]) -> None:
    """Write JSON Lines."""
    texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    path.write_text("".join(texts), encoding="utf-8")
    print(f"{path}: {len(texts)} lines")


if __name__ == "__main__":
    main()
