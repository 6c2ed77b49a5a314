"""Speech with its text for training a speech encoder: read, computed once, cut into batches.

Features and concepts are computed when a run begins and kept in its folder, since both cost more
than a training step on them. Everything random is a function of (seed, epoch) or (seed, step), so
that resuming needs no saved state.

Shapes: U utterances, T steps of 10 ms, B mel bands, N rows of a batch, L frames, F features of a
frame, D concept dim.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcm_cli.documents.recording import Recording, Samples
from lcm_cli.errors import IntegrityError
from lcm_cli.files import atomic_path, make_folder, not_there
from lcm_cli.progress import StartJob, no_progress
from lcm_cli.schema import parse
from lcm_cli.space import Space
from lcm_cli.speech.features import RATE, STEP, WINDOW, log_mel

STEPS = RATE // STEP  # a second
_NOISE_STEPS = 1000
_DECIBEL = np.log(10) / 10  # of a natural logarithm of energies


@dataclass(frozen=True)
class Utterance:
    """A line of a table: an audio file, its text, and the language of both."""

    audio: str
    text: str
    lang: str = ""


@dataclass(frozen=True)
class Utterances:
    """Utterances with their features and the concepts of their texts.

    `mel_TB` has the log mel energies of these and other utterances, one after the other, in
    float16. `left_out` is the number of utterances that were too short or too long.
    """

    texts: list[str]
    langs: list[str]
    mel_TB: np.ndarray
    starts_U: np.ndarray
    lengths_U: np.ndarray
    concepts_UD: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def sentences_U(self) -> np.ndarray:
        """A number for each text; equal texts have the same."""
        return np.unique(self.texts, return_inverse=True)[1]

    @property
    def hours(self) -> float:
        """The duration of all utterances."""
        return float(self.lengths_U.sum()) / STEPS / 3600

    def mel(self, index: int) -> np.ndarray:
        """Return the log mel energies (T, B) of an utterance."""
        start = self.starts_U[index]
        return self.mel_TB[start : start + self.lengths_U[index]]

    def batches(self, seed: int, epoch: int, seconds: float) -> list[np.ndarray]:
        """Return the indices in each batch of an epoch, of similar durations within a batch.

        A batch lasts `seconds` at most, its rows being as long as the longest, or has one row.
        """
        draw = np.random.default_rng([seed, epoch])
        order = draw.permutation(len(self))
        order = order[np.argsort(self.lengths_U[order], kind="stable")]
        batches, first = [], 0
        for place, index in enumerate(order):
            # The newest is the longest, to whose length all others are extended.
            if place > first and (place + 1 - first) * self.lengths_U[index] > seconds * STEPS:
                batches.append(order[first:place])
                first = place
        batches.append(order[first:])
        return [batches[number] for number in draw.permutation(len(batches))]

    def rows(self, indices: np.ndarray, steps: int, draw: np.random.Generator) -> Tensor:
        """Return log mel energies (N, T, B), each utterance at a random place in `steps` steps.

        Its first and last step are repeated before and after it, so that no row has padding.
        """
        lengths_N = self.lengths_U[indices]
        offsets_N = draw.integers(0, steps - lengths_N + 1)
        places_NT = np.arange(steps) - offsets_N[:, None]
        places_NT = places_NT.clip(0, lengths_N[:, None] - 1) + self.starts_U[indices][:, None]
        return torch.from_numpy(self.mel_TB[places_NT].astype(np.float32))


def standardized(mel_NTB: Tensor, stride: int) -> Tensor:
    """Return frames (N, T // stride, stride * B); each band has mean 0 and variance 1 in its row.

    They equal those of lcm_cli.speech.features.
    """
    # The clamp makes a band without variance 0, not NaN.
    variance, mean = torch.var_mean(mel_NTB, dim=1, keepdim=True)
    mel_NTB = (mel_NTB - mean) / variance.sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    frames = mel_NTB.shape[1] // stride
    return mel_NTB[:, : frames * stride].unflatten(1, (frames, stride)).flatten(2)


class Noise:
    """Stationary noise, from white to brown, to be mixed with speech."""

    def __init__(self, bins: int) -> None:
        draw = torch.Generator().manual_seed(0)
        # The last window takes one and a half steps more than its own.
        samples = (_NOISE_STEPS + 2) * STEP
        white = torch.fft.rfft(torch.randn(samples, generator=draw))
        slope = torch.arange(1, len(white) + 1) ** -0.5
        # The energy falls by 0, 3 and 6 dB an octave.
        waves = [torch.fft.irfft(white * slope**power, n=samples) for power in range(3)]
        # Any loudness will do, since `mixed` sets it, as long as no energy is at log_mel's floor.
        self._colours = torch.stack([log_mel(0.1 * w / w.std(), bins) for w in waves])
        self._level = self._colours.exp().mean(dim=(1, 2)).log()

    def mixed(
        self, mel_NTB: Tensor, share: float, snr: tuple[float, float], draw: np.random.Generator
    ) -> Tensor:
        """Return log mel energies with noise in a random `share` of the rows, at `snr` decibels.

        Energies are added, which is what adding independent signals does on average.
        """
        noisy = np.flatnonzero(draw.random(len(mel_NTB)) < share)
        if not len(noisy):
            return mel_NTB
        colour_n = torch.from_numpy(draw.integers(len(self._colours), size=len(noisy)))
        places_nT = draw.integers(_NOISE_STEPS, size=(len(noisy), 1)) + np.arange(mel_NTB.shape[1])
        noise_nTB = self._colours[colour_n[:, None], torch.from_numpy(places_nT % _NOISE_STEPS)]
        # Levels are logarithms of mean energies, so the ratio of signal to noise is a difference.
        level_n = mel_NTB[noisy].exp().mean(dim=(1, 2)).log() - self._level[colour_n]
        quieter_n = torch.from_numpy(draw.uniform(*snr, size=len(noisy))).float() * _DECIBEL
        noise_nTB = noise_nTB + (level_n - quieter_n)[:, None, None]
        mixed_NTB = mel_NTB.clone()
        mixed_NTB[noisy] = torch.logaddexp(mel_NTB[noisy], noise_nTB)
        return mixed_NTB


def mask(frames_NLF: Tensor, bins: int, share: float, draw: np.random.Generator) -> Tensor:
    """Return frames with a random span of bands and one of frames at 0, their mean, in each row.

    Each span is at most a `share` of all (SpecAugment, Park et al. 2019).
    """
    rows, length, features = frames_NLF.shape
    kept_NB = _kept(rows, bins, share, draw)
    kept_NL = _kept(rows, length, share, draw)
    return frames_NLF * kept_NB.repeat(1, features // bins)[:, None] * kept_NL[:, :, None]


def _kept(rows: int, length: int, share: float, draw: np.random.Generator) -> Tensor:
    """Return (rows, length) with a span of zeros in each row."""
    width_N1 = draw.uniform(0, share * length, size=(rows, 1)).round()
    start_N1 = (draw.random((rows, 1)) * (length - width_N1 + 1)).astype(int)
    places_L = np.arange(length)
    return torch.from_numpy((places_L < start_N1) | (places_L >= start_N1 + width_N1))


def read_table(path: Path, languages: Sequence[str]) -> list[Utterance]:
    """Return the lines of a table, audio paths included in full.

    Raises NotFoundError for a missing table, IntegrityError for a line that is not valid.
    """
    if not path.is_file():
        raise not_there(path)
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found.append(_parse(line, f"{path}:{number}", path.parent, languages))
    if not found:
        raise IntegrityError(f"{path} is empty", 'a line: {"audio": "a.flac", "text": "Hello."}')
    return found


def _parse(line: str, where: str, folder: Path, languages: Sequence[str]) -> Utterance:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise IntegrityError(f"{where}: not JSON: {error}") from error
    known: dict[str, Any] = {
        key: value[key]
        for key in ("audio", "text", "lang")
        if isinstance(value, dict) and key in value
    }
    read = parse(Utterance, known, where)
    lang = read.lang or (languages[0] if len(languages) == 1 else "")
    if lang not in languages:
        message = f"{where}: lang = {lang!r} is not one of the recipe's languages"
        raise IntegrityError(message, f"languages: {', '.join(languages)}")
    return Utterance(str(folder / read.audio), read.text, lang)


def prepare(
    table: Sequence[Utterance],
    space: Space,
    bins: int,
    limits: tuple[int, int],
    folder: Path,
    progress: StartJob = no_progress,
) -> Utterances:
    """Return the utterances of a table whose number of steps is within `limits`.

    Features and concepts are computed, or read from `folder` if an earlier call left them there.
    Raises NotFoundError or IntegrityError for an audio file that is missing or damaged, or if no
    utterance is left.
    """
    key = json.dumps([[asdict(each) for each in table], space.fingerprint, bins])
    place = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    mel, rest = place.with_suffix(".mel"), place.with_suffix(".npz")
    if not rest.is_file():
        make_folder(folder)
        lengths = _write_mel(table, bins, mel, progress)
        texts, langs = [each.text for each in table], [each.lang for each in table]
        with progress("encoding the texts", len(table)) as advance:
            concepts = space.encode(texts, langs, advance).concepts
        # Last: it marks both files as complete.
        with atomic_path(rest, force=True) as temporary, temporary.open("wb") as file:
            np.savez(file, lengths=lengths, concepts=concepts)
    found = np.load(rest)
    lengths = found["lengths"]
    kept = np.flatnonzero((limits[0] <= lengths) & (lengths <= limits[1]))
    if not len(kept):
        message = f"no utterance lasts between {limits[0] / STEPS} and {limits[1] / STEPS} s"
        raise IntegrityError(message, "check train.max_seconds and the audio")
    return Utterances(
        [table[int(index)].text for index in kept],
        [table[int(index)].lang for index in kept],
        np.memmap(mel, np.float16, "r", shape=(int(lengths.sum()), bins)),
        (np.cumsum(lengths) - lengths)[kept],
        lengths[kept],
        found["concepts"][kept],
        len(table) - len(kept),
    )


def _write_mel(table: Sequence[Utterance], bins: int, path: Path, progress: StartJob) -> np.ndarray:
    """Write the features of all utterances to a file; return their numbers of steps."""
    lengths = []
    with (
        progress("reading the audio", len(table)) as advance,
        atomic_path(path, force=True) as temporary,
        temporary.open("wb") as file,
    ):
        for each in table:
            wave = torch.from_numpy(read_audio(Path(each.audio)))
            mel_TB = log_mel(wave, bins) if len(wave) >= WINDOW else torch.empty(0, bins)
            file.write(mel_TB.half().numpy().tobytes())
            lengths.append(len(mel_TB))
            advance(1)
    return np.array(lengths)


def read_audio(path: Path) -> Samples:
    """Return the samples (S,) of an audio file as float32, mono at 16 kHz.

    Raises NotFoundError if it is missing, and what Recording raises.
    """
    if not path.is_file():
        raise not_there(path)
    return np.concatenate(list(Recording(str(path), path, 0.0).blocks()))


def tables(paths: Iterable[str], languages: Sequence[str]) -> list[Utterance]:
    """Return the lines of several tables."""
    return [each for path in paths for each in read_table(Path(path), languages)]
