"""Spaces: an encoder, a decoder and a tokenizer together, and their loading.

Shapes: S sentences, D concept dim.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.hub.locate import SpaceFiles, locate_space
from lcm_cli.progress import Progress
from lcm_cli.space.adapters import adapted, check_base
from lcm_cli.space.captured import CapturedSteps
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.kernel_check import check_row_kernel
from lcm_cli.space.kernels import align_vocabulary, pack_linear, quantize, return_memory
from lcm_cli.space.loading import Config, load_weights, stored_scales
from lcm_cli.space.search import DecodeOptions, captured_steps, search
from lcm_cli.space.tokenizer import EOS, Tokenizer
from lcm_cli.text.languages import find_language
from lcm_cli.weights import Network, read_weights, sampled

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True)
class Truncation:
    """A sentence over the encoder's token limit, of which only `limit` tokens were encoded."""

    index: int
    tokens: int
    limit: int


@dataclass(frozen=True)
class Encoded:
    """Concepts (S, D) float32, one row per sentence, and the sentences that were truncated."""

    concepts: np.ndarray
    truncated: list[Truncation]


@dataclass(frozen=True)
class Text:
    """A decoded sentence and its length-normalised log probability."""

    text: str
    score: float


def load_space(
    source: str = "tiny",
    *,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int | None = None,
) -> "Space":
    """Load a space by card name, folder or ORG/REPO; weights are read when first needed.

    `batch_tokens` limits the tokens that the encoder processes, or the decoder keeps, at a time.
    Raises NotFoundError if the space is not installed, UsageError for an unknown device or
    precision, IntegrityError for an adapter of another base.
    """
    files = locate_space(source)
    chosen = pick_device(device)
    if files.adapter:
        check_base(files.adapter)
    return Space(files, chosen, pick_precision(precision, chosen), batch_tokens)


class Space:
    """An encoder, a decoder and a tokenizer of the same concepts."""

    def __init__(
        self,
        files: SpaceFiles,
        device: torch.device,
        precision: str,
        batch_tokens: int | None,
    ) -> None:
        self.files = files
        self.device = device
        self.precision = precision
        self.batch_tokens = batch_tokens
        self.name = files.name
        self.licence = files.licence
        self.languages: tuple[str, ...] = tuple(files.config["languages"])
        self.dim: int = files.config["encoder"]["model_dim"]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the encoder and tokenizer that identifies the space, 16 hex digits.

        Spaces with the same encoder and tokenizer (sonar and sonar-robust, for example) have the
        same concepts. The digest covers the bytes of the tokenizer and the names, shapes and
        float32 values of the encoder's tensors, so it does not depend on how these are stored.
        Large matrices are sampled (see lcm_cli.weights.sampled), which distinguishes versions but
        does not verify every value. An adapter of the decoder alone leaves it unchanged. Raises
        IntegrityError for a damaged file.
        """
        digest = hashlib.sha256(self.files.tokenizer.read_bytes())
        for block in sampled(adapted(read_weights(self.files.encoder), self.files.adapter)):
            digest.update(block)
        return digest.hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises IntegrityError if it does not fit the weights."""
        tokenizer = Tokenizer(self.files.tokenizer, self.languages)
        wanted = self.files.config["encoder"]["vocabulary"]
        if tokenizer.vocabulary != wanted:
            message = f"{self.files.tokenizer} has {tokenizer.vocabulary} ids, the weights {wanted}"
            raise IntegrityError(message, "use tokenizer and weights of the same space")
        return tokenizer

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder network, in this space's precision and the fastest layout for its device."""
        config = EncoderConfig(**self.files.config["encoder"])
        return self._laid_out(TextEncoder, config, self.files.encoder)

    @cached_property
    def decoder(self) -> TextDecoder:
        """The decoder network, in this space's precision and the fastest layout for its device."""
        config = DecoderConfig(**self.files.config["decoder"])
        return self._laid_out(TextDecoder, config, self.files.decoder)

    def _laid_out(self, build: Callable[[Config], Network], config: Config, path: Path) -> Network:
        if self._dtype.itemsize == 2:  # the kernel computes in half precision
            check_row_kernel(self.device)
        adapter = self.files.adapter
        network = load_weights(build, config, path, self.device, self._dtype, adapter)
        if self.precision == "int8":
            return quantize(network, stored_scales(path, adapter))
        return align_vocabulary(pack_linear(network))

    def find_language(self, query: str) -> str:
        """Return the code of the language that `query` names.

        Raises NotFoundError with the closest names if the space has no such language.
        """
        return find_language(query, self.languages, self.name).code

    def tokenize(self, sentences: Sequence[str], lang: str | Sequence[str]) -> list[list[int]]:
        """Return the source token ids of each sentence; `lang` is one code, or one per sentence."""
        codes = [lang] * len(sentences) if isinstance(lang, str) else lang
        rows: list[list[int]] = [[]] * len(sentences)
        for code in dict.fromkeys(codes):
            places = [i for i, c in enumerate(codes) if c == code]
            encoded = self.tokenizer.encode([sentences[i] for i in places], code)
            for place, row in zip(places, encoded, strict=True):
                rows[place] = row
        return rows

    def encode(
        self,
        sentences: Sequence[str],
        lang: str | Sequence[str],
        progress: Progress | None = None,
    ) -> Encoded:
        """Encode sentences in order; equal sentences are computed once.

        `lang` is one code, or one per sentence. `progress` receives the number of sentences done.
        """
        codes = [lang] * len(sentences) if isinstance(lang, str) else lang
        places: dict[tuple[str, str], list[int]] = {}
        for place, pair in enumerate(zip(sentences, codes, strict=True)):
            places.setdefault(pair, []).append(place)
        rows = self.tokenize([text for text, _ in places], [code for _, code in places])
        where, limit = list(places.values()), self.encoder.config.max_length
        long = [number for number, row in enumerate(rows) if len(row) > limit]
        cut = [Truncation(place, len(rows[i]), limit) for i in long for place in where[i]]
        for number in long:  # unlike in sonar-space, a truncated sentence keeps its end token
            rows[number] = [*rows[number][: limit - 1], EOS]
        concepts = np.empty((len(codes), self.dim), dtype=np.float32)
        for batch, found in self._computed(rows):
            own = [where[number] for number in batch]
            concepts[list(chain(*own))] = np.repeat(found, [len(same) for same in own], axis=0)
            if progress:
                progress(sum(map(len, own)))
        cut.sort(key=lambda truncation: truncation.index)
        return Encoded(concepts, cut)

    def decode(
        self,
        concepts: np.ndarray,
        to: Sequence[str],
        options: DecodeOptions | None = None,
        *,
        limits: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, list[list[Text]]]:
        """Decode concepts (S, D) into each language of `to`: code -> sentence -> n best texts.

        `limits` are the maximum numbers of tokens of each sentence (default: options.max_tokens).
        `progress` receives the number of sentences done. Raises IntegrityError for concepts of
        another width and for NaN or infinite values.
        """
        options = options or DecodeOptions()
        self._check(concepts)
        sentence_limits = [options.max_tokens] * len(concepts) if limits is None else limits
        # Sentences and languages share batches, sorted so that those of a batch finish together.
        jobs = [(s, lang) for lang in to for s in range(len(concepts))]
        jobs.sort(key=lambda job: sentence_limits[job[0]])
        out: dict[str, list[list[Text]]] = {lang: [[] for _ in concepts] for lang in to}
        draws = options.n_best if options.sample else 1
        size = max(1, self._rows_in_flight() // (draws if options.sample else options.beam))
        steps = self._steps(min(size, len(jobs)), sentence_limits, options) if jobs else None
        for start in range(0, len(jobs), size):
            part = jobs[start : start + size]
            rows = torch.from_numpy(concepts[[s for s, _ in part]].astype(np.float32))
            found = self._search(rows, part, sentence_limits, options, steps, progress)
            for (s, lang), texts in zip(part, found, strict=True):
                out[lang][s] = texts
            # Batches differ in size, so the next would not fit into the gaps that this one left.
            return_memory()
        return out

    def limits(self, sentences: Sequence[str], lang: str | Sequence[str]) -> list[int]:
        """Return generous token limits for decoding texts with the meaning of `sentences`."""
        # Languages differ up to threefold in the number of tokens for the same content.
        return [3 * len(row) + 16 for row in self.tokenize(sentences, lang)]

    def _check(self, concepts: np.ndarray) -> None:
        if concepts.ndim != 2 or concepts.shape[1] != self.dim:
            message = (
                f"concepts of shape {concepts.shape}; {self.name} takes (sentences, {self.dim})"
            )
            hint = "pass the space that made them as --space; lcm inspect FILE shows it"
            raise IntegrityError(message, hint)
        bad = np.flatnonzero(~np.isfinite(concepts).all(axis=1))
        if len(bad):
            raise IntegrityError(f"concept {bad[0]} is not finite", "embed its sentence again")

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Yield the numbers of rows, shortest first, within the token budget or a single row."""
        # On the CPU the feed-forward's inner activations should stay in cache (docs/benchmarks.md).
        budget = self.batch_tokens or (32_768 if self.device.type != "cpu" else 512)
        batch: list[int] = []
        used = 0
        for number in sorted(range(len(rows)), key=lambda i: len(rows[i])):
            if batch and used + len(rows[number]) > budget:
                yield batch
                batch, used = [], 0
            batch.append(number)
            used += len(rows[number])
        if batch:
            yield batch

    def _computed(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield the numbers of rows, a batch at a time, with their concepts, (rows, D)."""
        # A batch is read only after the next was launched, so that a GPU need not wait for it.
        before: tuple[list[int], Tensor] | None = None
        for batch in self._batches(rows):
            with torch.inference_mode(), self._memory_errors():
                launched = self.encoder([rows[number] for number in batch]).float()
            if before:
                yield before[0], before[1].cpu().numpy()
            before = batch, launched
        if before:
            yield before[0], before[1].cpu().numpy()

    def _steps(
        self, rows: int, limits: Sequence[int], options: DecodeOptions
    ) -> CapturedSteps | None:
        """Return steps that batches of at most `rows` rows share, if that makes them faster."""
        with self._memory_errors():
            return captured_steps(self.decoder, rows, limits, options)

    def _search(
        self,
        rows: Tensor,
        jobs: Sequence[tuple[int, str]],
        limits: Sequence[int],
        options: DecodeOptions,
        steps: CapturedSteps | None,
        progress: Progress | None,
    ) -> list[list[Text]]:
        """Decode one batch: `rows` (R, D) are the concepts of the (sentence, language) jobs."""
        draws = options.n_best if options.sample else 1
        repeated = [job for job in jobs for _ in range(draws)]
        languages = [self.tokenizer.language(lang) for _, lang in repeated]
        # A draw's random stream depends on its sentence, language and index, not on the batch.
        streams = [
            (s * len(self.languages) + self.languages.index(lang)) * draws + i % draws
            for i, (s, lang) in enumerate(repeated)
        ]
        with self._memory_errors():
            found = search(
                self.decoder,
                rows.repeat_interleave(draws, dim=0).to(self.device, self._dtype),
                languages,
                [limits[s] for s, _ in repeated],
                options,
                streams=streams,
                finished=progress or (lambda rows: None),
                steps=steps,
            )
        best = [h for hypotheses in found for h in hypotheses[: options.n_best]]
        texts = self.tokenizer.decode([h.ids for h in best])
        pairs = iter([Text(t, h.score) for t, h in zip(texts, best, strict=True)])
        flat = [[next(pairs) for _ in hypotheses[: options.n_best]] for hypotheses in found]
        # The draws of a job are rows of their own until here.
        groups = [flat[i : i + draws] for i in range(0, len(flat), draws)]
        return [sorted(chain(*group), key=lambda t: -t.score) for group in groups]

    def _rows_in_flight(self) -> int:
        """Return how many hypotheses to decode together.

        Many rows make matrix products efficient, but each needs room for its keys and values.
        """
        config = self.files.config["decoder"]
        typical = 64  # tokens of a long sentence
        if self.batch_tokens:
            return max(1, self.batch_tokens // typical)
        room = 4 << 30 if self.device.type == "cpu" else 16 << 30  # bytes
        # Keys and values, 4 bytes each.
        row_bytes = 2 * 4 * config["layers"] * config["model_dim"] * typical
        return min(max(room // row_bytes, 8), 1024)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "int8" else getattr(torch, self.precision)

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            hint = "use a smaller --batch-tokens, or --precision float16"
            raise LcmError(f"{self.device} is out of memory", hint) from error


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises UsageError if there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        # Only an allocation shows whether the device is there.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device {name!r} is not available: {reason}", "list the devices: lcm doctor"
        ) from error
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision called `name`; "auto" is float32 on the CPU, else float16.

    Raises UsageError if it is unknown or does not exist on `device`.
    """
    if name not in PRECISIONS:
        raise UsageError(f"unknown precision {name!r}", f"choose from: {', '.join(PRECISIONS)}")
    if name == "int8" and device.type != "cpu":
        raise UsageError(f"int8 runs only on the CPU, not on {device}", "use float16 or bfloat16")
    if name == "auto":
        return "float32" if device.type == "cpu" else "float16"
    return name
