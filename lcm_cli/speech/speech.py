"""Speech encoders, ready to use: from waveforms to concepts.

Shapes: N utterances, S samples, F features of a frame, D concept dim.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.files import atomic_files
from lcm_cli.hub.locate import MODEL_FILES, SpeechFiles, locate_speech
from lcm_cli.progress import Progress
from lcm_cli.space.kernels import quantize
from lcm_cli.space.loading import load_weights, open_weights, stored_scales
from lcm_cli.space.space import pick_device, pick_precision
from lcm_cli.speech.config import SpeechConfig, read_speech_config
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.speech.features import RATE, STEP, WINDOW, features, pad
from lcm_cli.weights import Store, Weight, pieces, write_safetensors

CONFIG, WEIGHTS = MODEL_FILES["config"], MODEL_FILES["model"]


def load_speech_encoder(source: str, *, device: str = "auto", precision: str = "auto") -> "Speech":
    """Load a speech encoder by card name, folder or ORG/REPO; weights are read when first needed.

    Raises NotFoundError if it is not installed, UsageError for an unknown device or precision,
    IntegrityError for a damaged config.
    """
    chosen = pick_device(device)
    return Speech(locate_speech(source), chosen, pick_precision(precision, chosen))


def open_speech(files: SpeechFiles) -> tuple[SpeechConfig, dict[str, Weight]]:
    """Return the config of a speech encoder and its weights, not yet read.

    Raises IntegrityError for a damaged file, missing tensors or wrong shapes.
    """
    config = read_speech_config(files.config)
    return config, open_weights(SpeechEncoder, config.encoder, files.weights)[1]


class Speech:
    """A speech encoder: speech in `languages` to the concepts of its `spaces`."""

    def __init__(self, files: SpeechFiles, device: torch.device, precision: str) -> None:
        self.files = files
        self.device = device
        self.precision = precision
        self.config = read_speech_config(files.config)
        self.name = self.config.name
        self.languages = self.config.languages
        self.dim = self.config.encoder.concept_dim

    @cached_property
    def encoder(self) -> SpeechEncoder:
        """The network, in this encoder's precision."""
        shapes, path = self.config.encoder, self.files.weights
        network = load_weights(SpeechEncoder, shapes, path, self.device, self._dtype)
        return quantize(network, stored_scales(path)) if self.precision == "int8" else network

    @property
    def shortest(self) -> float:
        """The duration in seconds of the shortest utterance that can be encoded."""
        return self._samples(1) / RATE

    @property
    def longest(self) -> float:
        """The duration in seconds of the longest utterance that can be encoded."""
        return self._samples(self.config.encoder.max_length) / RATE

    def check_space(self, name: str, fingerprint: str = "") -> None:
        """Raise IntegrityError unless the concepts are those of the space called `name`."""
        known = self.config.fingerprint
        # The fingerprints decide; where one of them is unknown, the name does.
        same = fingerprint == known if fingerprint and known else name in self.config.spaces
        if same:
            return
        raise IntegrityError(
            f"the speech encoder {self.name} belongs to the space {self.config.spaces[0]}, "
            f"not to {name}",
            f"use that space: --space {self.config.spaces[0]}",
        )

    def encode(
        self, waveforms: Sequence[np.ndarray], *, progress: Progress | None = None
    ) -> Tensor:
        """Encode utterances, float32 (S,) each, mono at 16 kHz; return concepts (N, D) float32.

        Utterances are batched by duration. `progress` receives the number of utterances done.
        Raises IntegrityError, with the index, for samples that are not float32 or not finite, and
        for an utterance that is silent, too short or too long.
        """
        for index, waveform in enumerate(waveforms):
            self._check(waveform, f"utterance {index}")
        concepts_ND = torch.empty(len(waveforms), self.dim)
        for batch in self._batches([len(waveform) for waveform in waveforms]):
            concepts_ND[batch] = self._encode([waveforms[index] for index in batch])
            if progress:
                progress(len(batch))
        return concepts_ND

    def _encode(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        shapes = self.config.encoder
        tensors = (torch.from_numpy(np.array(w)) for w in waveforms)  # copies: some are read-only
        features_NLF, lengths_N = pad([features(t, shapes.bins, shapes.stride) for t in tensors])
        with torch.inference_mode():
            try:
                features_NLF = features_NLF.to(self.device, self._dtype)
                return self.encoder(features_NLF, lengths_N).float().cpu()
            except torch.cuda.OutOfMemoryError as error:
                raise LcmError(
                    f"{self.device} is out of memory", "use shorter utterances"
                ) from error

    def _batches(self, samples: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of utterances of similar lengths, within the budget or a single one."""
        seconds = 10 if self.device.type == "cpu" else 300
        batch: list[int] = []
        for index in sorted(range(len(samples)), key=lambda i: samples[i]):
            # The newest is the longest, to which the others are padded.
            if batch and (len(batch) + 1) * samples[index] > seconds * RATE:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _check(self, waveform: np.ndarray, name: str) -> None:
        if waveform.dtype != np.float32 or waveform.ndim != 1:
            message = f"{name} is {waveform.dtype} of shape {waveform.shape}"
            raise IntegrityError(message, "pass mono samples as float32 between -1 and 1")
        seconds = len(waveform) / RATE
        if len(waveform) < self._samples(1):
            message = f"{name} is too short: {seconds:.3f} s"
            raise IntegrityError(message, f"pass at least {self.shortest:.3f} s")
        if len(waveform) >= self._samples(self.config.encoder.max_length + 1):
            message = f"{name} is too long: {seconds:.1f} s"
            raise IntegrityError(message, f"split it into pieces of at most {int(self.longest)} s")
        if bad := int((~np.isfinite(waveform)).sum()):
            message = f"{name} has {bad} samples that are not finite"
            raise IntegrityError(message, "decode its file again")
        if waveform.min() == waveform.max():
            raise IntegrityError(f"{name} is silent: all its samples are equal", "leave it out")

    def _samples(self, frames: int) -> int:
        """Return the number of samples that `frames` need; a variance needs two steps."""
        return WINDOW + (max(2, frames * self.config.encoder.stride) - 1) * STEP

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "int8" else getattr(torch, self.precision)


def save(
    encoder: SpeechEncoder,
    config: SpeechConfig,
    folder: Path,
    *,
    store: Store | None = None,
    force: bool = False,
) -> None:
    """Write a speech encoder as a checkpoint folder, created if missing, as `store` or unchanged.

    Raises UsageError if a checkpoint is already there and `force` is false, IntegrityError for
    weights that cannot be stored as `store`.
    """
    if encoder.config != config.encoder:
        raise UsageError("the config describes another encoder", "pass the encoder's own shapes")
    state = {
        key: tensor.detach().cpu().contiguous() for key, tensor in encoder.state_dict().items()
    }
    write(config, state, folder, store=store, force=force)


def write(
    config: SpeechConfig,
    weights: Mapping[str, Weight],
    folder: Path,
    *,
    store: Store | None = None,
    force: bool = False,
) -> None:
    """Write weights as `save` does those of an encoder."""
    with atomic_files(folder, (WEIGHTS, CONFIG), force=force) as places:
        digest = write_safetensors(places[WEIGHTS], pieces(weights, store))
        text = json.dumps(replace(config, sha256={WEIGHTS: digest}).to_dict(), indent=1)
        places[CONFIG].write_text(text + "\n", encoding="utf-8")
