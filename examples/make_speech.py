"""Synthesize speech from text with espeak-ng, to train a speech encoder (kind = "speech").

TEXT is JSON Lines of {language code: sentence}, as `examples/space_text` makes, also .gz or .xz.
OUT receives the audio, FLAC at 16 kHz, and three tables of {"audio", "text", "voice"}:

- train.jsonl;
- dev.jsonl:        sentences that train.jsonl does not have, by the same voices;
- dev-voices.jsonl: the sentences of dev.jsonl, by voices that train.jsonl does not have.

    python examples/make_speech.py data/tatoeba.jsonl data/tinystories.jsonl -o data/speech

Only sentences of at most `--words` words, all of them among the `--known` most frequent words of
the text, are spoken: a small encoder learns few words well rather than many badly. The same
arguments always give the same sentences, voices and rates.

The voices are synthetic, so an encoder trained on them alone knows no human speech. Noise belongs
to training (`train.noise`), not into the files.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installation

import soundfile
import soxr

from lcm_cli.errors import LcmError, NotFoundError
from lcm_cli.files import atomic_path
from lcm_cli.training.data.parallel_text import read_translations

RATE = 16_000
ENGLISH = "eng_Latn"
ACCENTS = (
    *("en", "en", "en", "en-us", "en-us"),  # the defaults of most users, hence more often
    *("en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029", "en-us-nyc"),
)
VARIANTS = (
    *("", "", "", "", "+m1", "+m2", "+m3", "+m4", "+m5", "+m7", "+f1", "+f2", "+f3", "+f5"),
    *("+Alex", "+Andy", "+Alicia", "+belinda", "+linda", "+john", "+robert", "+Gene", "+Lee"),
)
# Accent and variants that are never heard in training.
NEW_VOICES = tuple(f"{a}{v}" for a in ("en-gb-x-gbcwmd", "en-us") for v in ("+m6", "+f4", "+Annie"))
WORD = re.compile(r"[a-z]+(?:['’][a-z]+)?")


@dataclass(frozen=True)
class Utterance:
    """A sentence and how it is spoken: words a minute, pitch of 0 to 99, silence at the end."""

    text: str
    voice: str
    speed: int
    pitch: int
    pause: bool


def main(given: argparse.Namespace) -> None:
    """Write the audio and the tables; report their number on standard error."""
    draw = random.Random(given.seed)
    sentences = chosen(given.text, given.words, given.known)
    draw.shuffle(sentences)
    if len(sentences) <= given.dev:
        sys.exit(f"error: only {len(sentences)} sentences fit\nhint: raise --words or --known")
    dev, train = sentences[: given.dev], sentences[given.dev :]
    voices = [accent + variant for accent in ACCENTS for variant in VARIANTS]
    spoken = train[: given.number] * given.takes
    sets = {
        "train": [spoken_by(voices, text, draw) for text in spoken],
        "dev": [spoken_by(voices, text, draw) for text in dev],
        "dev-voices": [spoken_by(NEW_VOICES, text, draw) for text in dev],
    }
    for name, utterances in sets.items():
        write(given.out, name, utterances)
        print(f"{len(utterances)} utterances in {given.out / name}.jsonl", file=sys.stderr)


def chosen(paths: Iterable[Path], words: int, known: int) -> list[str]:
    """Return the sentences of at most `words` words, all among the `known` most frequent."""
    found = dict.fromkeys(text for path in paths for text in english(path))
    spelt = {text: WORD.findall(text.lower()) for text in found if speakable(text)}
    counts = Counter(word for all_ in spelt.values() for word in all_)
    frequent = {word for word, _ in counts.most_common(known)}
    return [
        text for text, all_ in spelt.items() if len(all_) <= words and frequent.issuperset(all_)
    ]


def english(path: Path) -> Iterator[str]:
    """Yield the English sentences of a file, the first of those with one meaning."""
    for line in read_translations(path):
        if ENGLISH in line:
            yield line[ENGLISH][0]


def speakable(text: str) -> bool:
    """Return whether a text is one sentence in words, without numbers or symbols."""
    return bool(re.fullmatch(r"[A-Z][A-Za-z,;:'’\" -]*[.!?]\"?", text))


def spoken_by(voices: Sequence[str], text: str, draw: random.Random) -> Utterance:
    """Return a sentence with a voice, speed and pitch drawn at random."""
    speed, pitch = draw.randint(145, 200), round(min(max(draw.gauss(50, 12), 20), 80))
    return Utterance(text, draw.choice(voices), speed, pitch, pause=draw.random() < 0.3)


def write(out: Path, name: str, utterances: Sequence[Utterance]) -> None:
    """Write the audio of a set to OUT/NAME and its table to OUT/NAME.jsonl."""
    (out / name).mkdir(parents=True, exist_ok=True)
    names = [f"{name}/{number:06d}.flac" for number in range(len(utterances))]
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(speak, utterances, [out / file for file in names]):
            pass  # pass on an error
    with atomic_path(out / f"{name}.jsonl", force=True) as temporary:
        lines = (
            {"audio": file, "text": each.text, "voice": each.voice}
            for file, each in zip(names, utterances, strict=True)
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")


def speak(utterance: Utterance, path: Path) -> None:
    """Write the audio of an utterance. Raises NotFoundError without espeak-ng."""
    options = ["-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    options += [] if utterance.pause else ["-z"]
    try:
        command = ["espeak-ng", *options, "--stdout", utterance.text]
        wave = subprocess.run(command, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise NotFoundError(
            "espeak-ng is not installed", "for example: apt install espeak-ng"
        ) from None
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    soundfile.write(path, soxr.resample(samples, rate, RATE), RATE)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("text", nargs="+", type=Path, help="JSON Lines, also .gz or .xz")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--number", type=int, default=30_000, help="of sentences [default: 30000]")
    parser.add_argument("--takes", type=int, default=1, help="of each sentence [default: 1]")
    parser.add_argument("--dev", type=int, default=500, help="sentences held out [default: 500]")
    parser.add_argument("--words", type=int, default=10, help="at most, a sentence [default: 10]")
    parser.add_argument("--known", type=int, default=3000, help="words [default: 3000]")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args())
    except LcmError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
