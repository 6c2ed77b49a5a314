"""Back-translate text of one language with a space, as training data for that space.

TEXT is JSON Lines of {language code: sentence}, as `examples/space_text` makes, also .gz or .xz.
Every sentence that has no translation gets one, by the space itself: English goes to another
language of the space, drawn at random; other languages go to English. The output has lines like

    {"nld_Latn": "De kat slaapt.", "machine:eng_Latn": "The cat is sleeping."}

whose machine translations training only encodes: `lcm train` never decodes into them, so that the
decoder learns from human sentences alone (back-translation, arXiv 1511.06709).

    python examples/back_translate.py data/common_voice.jsonl --space tiny > data/back.jsonl

Translations whose concepts have a cosine below `--least` with those of their sentences are left
out.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installation

import lcm_cli
from lcm_cli.errors import LcmError
from lcm_cli.space import DecodeOptions
from lcm_cli.space.similarity import unit_length
from lcm_cli.training.data.parallel_text import MACHINE, human, read_translations

ENGLISH = "eng_Latn"
TOGETHER = 2048  # sentences translated at a time


def main(given: argparse.Namespace) -> None:
    """Write the lines to standard output and their number to standard error."""
    space = lcm_cli.load_space(given.space, device=given.device, precision=given.precision)
    space.find_language(ENGLISH)  # raises NotFoundError
    if len(space.languages) == 1:
        raise LcmError(f"{space.name} knows English alone", "choose a space of several languages")
    options = DecodeOptions(beam=given.beam)
    rng = random.Random(0)
    found = (sentence for path in given.text for sentence in alone(path))
    seen = written = 0
    while some := list(islice(found, TOGETHER)):
        for line in translated(some, space, options, given.least, rng):
            print(json.dumps(line, ensure_ascii=False), flush=True)
            written += 1
        seen += len(some)
        print(f"\r{written} translations of {seen} sentences", end="", file=sys.stderr)
    print(file=sys.stderr)


def alone(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the language code and the text of each sentence without translations."""
    for line in read_translations(path):
        if len(line) == len(human(line)) == 1:
            [(code, texts)] = line.items()
            yield from ((code, text) for text in texts)


def translated(
    some: Sequence[tuple[str, str]],
    space: lcm_cli.Space,
    options: DecodeOptions,
    least: float,
    rng: random.Random,
) -> Iterator[dict[str, str]]:
    """Yield a line for each sentence whose translation is close enough to it."""
    others = [code for code in space.languages if code != ENGLISH]
    to = [rng.choice(others) if code == ENGLISH else ENGLISH for code, _ in some]
    texts, codes = [text for _, text in some], [space.find_language(code) for code, _ in some]
    concepts = space.encode(texts, codes).concepts
    for target in dict.fromkeys(to):
        places = [i for i, code in enumerate(to) if code == target]
        limits = space.limits([texts[i] for i in places], [codes[i] for i in places])
        found = space.decode(concepts[places], [target], options, limits=limits)[target]
        answers = [best[0].text for best in found]
        again = space.encode(answers, target).concepts
        cosines = (unit_length(concepts[places]) * unit_length(again)).sum(axis=1)
        for i, answer, similarity in zip(places, answers, cosines, strict=True):
            if answer and similarity >= least:
                yield {codes[i]: texts[i], MACHINE + target: answer}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("text", nargs="+", type=Path, help="JSON Lines, also .gz or .xz")
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--beam", type=int, default=1, help="[default: 1, which is fastest]")
    parser.add_argument("--least", type=float, default=0.7, metavar="COSINE", help="[default: 0.7]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args())
    except LcmError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
