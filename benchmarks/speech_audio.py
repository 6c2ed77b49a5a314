"""Measure how recordings become utterances: voice activity, the pause that cuts, and resampling.

espeak-ng speaks sentences from examples/, so that every pause is known. Three tables:

- detectors: Silero and webrtcvad with pauses of 0.5 to 1.5 s, clean and in noise;
- pauses: the share of sentence boundaries found, and of sentences cut inside, for several values of
  the shortest pause, with espeak-ng's own pauses at several speeds;
- resampling: soxr and torchaudio, by speed and by their error on sweeps.

Needs the program espeak-ng and the packages webrtcvad and torchaudio, besides lcm-cli[speech]:

    python benchmarks/speech_audio.py [detectors] [pauses] [resampling]
"""

import argparse
import importlib
import io
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lcm_cli.documents.recording import RATE, Samples
from lcm_cli.speech.utterances import LONGEST, PAUSE, WINDOW, Cutter, load_detector

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
VOICES = "en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-us+m5"
NOISES = (None, ""), (20, "white"), (10, "white"), (5, "white"), (10, "pink"), (5, "pink")
PAUSES = 0.16, 0.19, 0.22, 0.26, 0.29, 0.32, 0.35, 0.42, 0.48
SPEEDS = 120, 160, 200  # words a minute
NEAR = 0.1  # seconds by which a cut may lie outside its pause
SILENT = 0.003

Span = tuple[float, float]
Probabilities = Callable[[Samples], Sequence[float]]


@dataclass(frozen=True)
class Spoken:
    """Samples at 16 kHz, and the start and end of each sentence in seconds."""

    samples: Samples
    sentences: list[Span]


def main() -> None:
    """Print the tables asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    for table in parser.parse_args().tables or list(TABLES):
        print(f"\n{table}", flush=True)
        TABLES[table]()


def compare_detectors() -> None:
    """Print recall and precision of each detector in each noise, and its speed."""
    recordings = [speak(seed, 10, (140, 160, 190)[seed % 3], spaced=True) for seed in range(6)]
    detectors: dict[str, Probabilities] = {"Silero": silero}
    detectors |= {f"webrtcvad {mode}": webrtc(mode) for mode in (1, 2, 3)}
    for name, detect in detectors.items():
        cells, seconds, spent = [], 0.0, 0.0
        for level, kind in NOISES:
            counts = np.zeros(3)
            for number, spoken in enumerate(recordings):
                noisy = add_noise(spoken.samples, level, kind, number)
                start = time.process_time()
                found = detect(noisy)
                spent += time.process_time() - start
                seconds += len(noisy) / RATE
                counts += score(cut(found, PAUSE), spoken.sentences)
            hits, pauses, false = counts
            cells.append(f"{hits / pauses:.2f}/{hits / max(1, hits + false):.2f}")
        print(f"{name:12}", *cells, f"{seconds / spent:.0f} s per processor second", flush=True)
    print("recall/precision:", *(f"{kind} {level}" if kind else "clean" for level, kind in NOISES))


def compare_pauses() -> None:
    """Print the boundaries found and the false cuts per sentence, at each speed and pause."""
    print("pause       ", *(f"{pause:9.2f}" for pause in PAUSES))
    for speed in SPEEDS:
        recordings = [speak(seed, 12, speed, spaced=False) for seed in range(5)]
        for level, kind in ((None, ""), (10, "white"), (10, "pink")):
            counts = np.zeros((len(PAUSES), 3))
            for number, spoken in enumerate(recordings):
                found = silero(add_noise(spoken.samples, level, kind, number))
                counts += [score(cut(found, pause), spoken.sentences) for pause in PAUSES]
            sentences = sum(len(spoken.sentences) for spoken in recordings)
            cells = [f"{h / pauses:.2f}/{false / sentences:.2f}" for h, pauses, false in counts]
            label = f"{speed} {kind or 'clean'}"
            print(f"{label:12}", *(f"{cell:>9}" for cell in cells), flush=True)
    print("share of boundaries found / false cuts per sentence")


def compare_resamplers() -> None:
    """Print speed, error on a sweep below 7 kHz, and what is left of one above 9 kHz."""
    soxr, torchaudio = needed("soxr"), needed("torchaudio")
    import torch

    torch.set_num_threads(1)

    def ours(samples: Samples, rate: int) -> Samples:
        stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32")
        blocks = np.array_split(samples, max(1, len(samples) // (10 * rate)))
        parts = [stream.resample_chunk(block, last=False) for block in blocks]
        return np.concatenate([*parts, stream.resample_chunk(samples[:0], last=True)])

    def theirs(samples: Samples, rate: int) -> Samples:
        tensor = torch.from_numpy(samples)
        found: Samples = torchaudio.functional.resample(tensor, rate, RATE).numpy()
        return found

    for rate in (8_000, 22_050, 44_100, 48_000):
        noise = np.random.default_rng(0).uniform(-1, 1, 20 * rate).astype(np.float32)
        spent: dict[str, list[float]] = {"soxr": [], "torchaudio": []}
        for _ in range(3):
            for name, resample in (("soxr", ours), ("torchaudio", theirs)):
                start = time.process_time()
                resample(noise, rate)
                spent[name].append(time.process_time() - start)
        for name, resample in (("soxr", ours), ("torchaudio", theirs)):
            top = min(7_000.0, 0.45 * rate)
            found = resample(sweep(rate, 50, top), rate)
            error = decibels(found[: 10 * RATE] - sweep(RATE, 50, top)[: len(found)])
            kept = (
                f", above 9 kHz {decibels(resample(sweep(rate, 9e3, 0.48 * rate), rate)):6.1f} dB"
            )
            speed = 20 / statistics.median(spent[name])
            line = f"{rate:6} Hz  {name:10} {speed:7.0f} s per processor second, error {error:6.1f}"
            print(line + " dB" + (kept if rate > 40_000 else ""), flush=True)


def speak(seed: int, count: int, speed: int, *, spaced: bool) -> Spoken:
    """Speak sentences with pauses of 0.5 to 1.5 s, or with espeak-ng's own, which follow them."""
    voice, rng = VOICES[seed % len(VOICES)], random.Random(seed)
    parts, spans, now = [np.zeros(int(0.7 * RATE), np.float32)], [], 0.7
    for sentence in rng.sample(sentences(), count):
        sound = say(sentence, voice, speed)
        heard = np.flatnonzero(np.abs(sound) > SILENT)
        first, last = heard[0], heard[-1] + 1
        spans.append((now + first / RATE, now + last / RATE))
        if spaced:
            pause = np.zeros(int(rng.choice([0.5, 0.7, 1.0, 1.5]) * RATE), np.float32)
            sound = np.concatenate([sound[:last], pause])
        parts.append(sound)
        now += len(sound) / RATE
    return Spoken(np.concatenate(parts), spans)


def sentences() -> list[str]:
    """Return the sentences of two stories."""
    texts = [(EXAMPLES / name).read_text() for name in ("lost_dog.txt", "two_brothers.txt")]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    return [sentence for line in lines for sentence in re.split(r"(?<=[.!?]) ", line)]


def say(sentence: str, voice: str, speed: int) -> Samples:
    """Return a sentence as spoken by espeak-ng, with the pause after it."""
    soundfile, soxr = needed("soundfile"), needed("soxr")
    if shutil.which("espeak-ng") is None:
        sys.exit("this table needs the program espeak-ng")
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", sentence]
    done = subprocess.run(command, capture_output=True, check=True)
    samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    found: Samples = soxr.resample(samples, rate, RATE)
    return found


def add_noise(samples: Samples, level: int | None, kind: str, seed: int) -> Samples:
    """Add noise `level` dB below the power of the speech."""
    if level is None:
        return samples
    noise = np.random.default_rng(seed).standard_normal(len(samples))
    if kind == "pink":  # its power falls with the frequency
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(
            spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), len(noise)
        )
    power = np.mean(samples[np.abs(samples) > SILENT] ** 2)
    noise *= np.sqrt(power / np.mean(noise**2)) * 10 ** (-level / 20)
    return (samples + noise).astype(np.float32)


def silero(samples: Samples) -> Sequence[float]:
    """Return the probability of speech in each window."""
    detect = load_detector()
    return [detect(window) for window in whole_windows(samples)]


def webrtc(mode: int) -> Probabilities:
    """Return a detector that averages webrtcvad's decisions, for frames of 30 ms, over five."""
    package = needed("webrtcvad")

    def detect(samples: Samples) -> Sequence[float]:
        vad, size = package.Vad(mode), 480
        whole = (np.clip(samples, -1, 1) * 32767).astype(np.int16)
        starts = range(0, len(whole) - size + 1, size)
        speech = [float(vad.is_speech(whole[i : i + size].tobytes(), RATE)) for i in starts]
        smooth = np.convolve(speech, np.ones(5) / 5, "same")
        centres = (np.arange(len(samples) // WINDOW) + 0.5) * WINDOW
        found: list[float] = np.interp(centres, np.array(starts) + size / 2, smooth).tolist()
        return found

    return detect


def whole_windows(samples: Samples) -> Iterator[Samples]:
    """Yield the windows of the samples, without a partial last one."""
    yield from samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)


def cut(probabilities: Sequence[float], pause: float) -> list[Span]:
    """Return the utterances' times by the cutter that lcm uses."""
    cutter, window = Cutter(LONGEST, pause), np.zeros(WINDOW, np.float32)
    found = [each for p in probabilities for each in cutter.add(window, p)]
    return [(each.start, each.end) for each in [*found, *cutter.finish()]]


def score(found: Sequence[Span], spoken: Sequence[Span]) -> tuple[int, int, int]:
    """Return the numbers of pauses with a cut, of pauses, and of cuts elsewhere."""
    pauses = [(a[1], b[0]) for a, b in pairwise(spoken)]
    cuts = [(a[1] + b[0]) / 2 for a, b in pairwise(found)]
    inside = [[start - NEAR <= at <= end + NEAR for at in cuts] for start, end in pauses]
    hits = sum(map(any, inside))
    return hits, len(pauses), len(cuts) - sum(map(any, zip(*inside, strict=True)))


def sweep(rate: int, low: float, high: float, seconds: int = 10) -> Samples:
    """Return a tone that rises from one frequency to another."""
    times = np.arange(seconds * rate) / rate
    phase = 2 * np.pi * (low * times + (high - low) * times**2 / (2 * seconds))
    return (0.5 * np.sin(phase)).astype(np.float32)


def decibels(samples: Samples) -> float:
    """Return the power relative to a sweep's, in dB, without half a second at both ends."""
    inner = samples[RATE // 2 : -RATE // 2]
    return float(10 * np.log10(np.mean(inner**2) / 0.125))


def needed(package: str) -> Any:
    """Import a package, or end the program with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        sys.exit(f"this table needs the package {package}: pip install {package}")


TABLES = {
    "detectors": compare_detectors,
    "pauses": compare_pauses,
    "resampling": compare_resamplers,
}

if __name__ == "__main__":
    main()
