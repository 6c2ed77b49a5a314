"""The task speech: text decoded from recordings of single sentences, and retrieval of that text.

Shapes: S recordings, D concept dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lcm_cli.documents import read
from lcm_cli.documents.recording import RATE
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.evaluation import metrics
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.space_quality import xsim
from lcm_cli.evaluation.systems import System
from lcm_cli.evaluation.tables import measured
from lcm_cli.evaluation.tasks import Context, Record, present, record_head
from lcm_cli.files import sha256
from lcm_cli.pipeline import prose, token_limit
from lcm_cli.space.similarity import cosines

if TYPE_CHECKING:
    from lcm_cli.speech import Speech

_EQUAL = 1e-5  # cosines that differ by less are those of the same text, given twice


class SpeechItself(System):
    """A speech encoder: encodes each recording, which the space decodes."""

    tasks = ("speech",)

    def __init__(self, name: str, speech: "Speech") -> None:
        self.name, self.speech = name, speech

    def about(self) -> dict[str, Any]:
        return {"kind": "speech", "sha256": dict(self.speech.config.sha256 or {})}


@dataclass(frozen=True)
class _Heard:
    """An example with the concept (D,) of its recording and its duration in seconds."""

    example: Example
    concept: np.ndarray
    seconds: float

    @property
    def text(self) -> str:
        return prose(self.example.source, self.example.lang)


def run_speech(
    system: System, examples: Sequence[Example], context: Context
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Return records of the recordings' texts, and the results of retrieval by language.

    A recording is decoded in its language and in those of its translations; `context.to`, if given,
    selects the latter. An example whose recording cannot be encoded is passed to `context.on_error`
    and skipped.
    """
    assert isinstance(system, SpeechItself)
    heard = list(_heard(system, examples, context))
    records: list[Record] = []
    results: list[dict[str, Any]] = []
    for lang in dict.fromkeys(each.example.lang for each in heard):
        own = [each for each in heard if each.example.lang == lang]
        records += _records(system, own, lang, [each.text for each in own], context)
        others = context.to or dict.fromkeys(code for e in own for code in e.example.parallel)
        for to in others:
            pairs = [e for e in own if to in e.example.parallel and to != lang]
            records += _records(system, pairs, to, [e.example.parallel[to] for e in pairs], context)
        if len(own) > 1:
            results += _retrieval(system, own, lang, context)
    return records, results


def _heard(system: SpeechItself, examples: Sequence[Example], context: Context) -> Iterator[_Heard]:
    for example in examples:
        try:
            concept, seconds = _encoded(system, example, context)
            yield _Heard(example, np.array(concept, np.float32), seconds)
        except LcmError as error:
            message = f"row {example.number}: {system.name}, speech: {error.message}"
            context.on_error(type(error)(message, error.hint))
        context.progress(1)


def _encoded(system: SpeechItself, example: Example, context: Context) -> tuple[list[float], float]:
    """Return the concept and the duration of an example's recording, stored if already known."""
    speech = system.speech
    if example.lang not in speech.languages:
        known = ", ".join(speech.languages)
        message = f"the row is in {example.lang}, but the encoder knows only {known}"
        raise UsageError(message, "if the language is wrong, name the right one with --from")
    if not example.audio:
        raise IntegrityError("the row has no audio", "give the path of its recording")
    path = Path(example.audio)
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist", "paths are relative to the file of the data")

    def encode() -> list[Any]:
        samples = _samples(path, speech)
        return [speech.encode([samples])[0].tolist(), len(samples) / RATE]

    key = ["speech", system.about(), speech.precision, sha256(path)]
    concept, seconds = context.work.remember(key, encode)
    return concept, seconds


def _samples(path: Path, speech: "Speech") -> np.ndarray:
    document = next(read([str(path)]), None)
    recording = None if document is None else document.recording
    if recording is None:
        raise IntegrityError(f"{path} is not a recording", "give an audio file, such as WAV")
    if recording.seconds > speech.longest:
        raise IntegrityError(
            f"{path} lasts {recording.seconds:.1f} s, but the encoder takes {speech.longest:.1f} s",
            "split it into clips of one sentence each",
        )
    return np.concatenate(list(recording.blocks()))


def _records(
    system: System, heard: Sequence[_Heard], to: str, targets: Sequence[str], context: Context
) -> list[Record]:
    if not heard:
        return []
    space = context.space
    limits = [token_limit(each.seconds) for each in heard]
    texts = space.decode(np.stack([each.concept for each in heard]), [to], limits=limits)[to]
    records = []
    for each, target, (best, *_) in zip(heard, targets, texts, strict=True):
        example = each.example
        scores = {
            "chrf": metrics.sentence_chrf(best.text, target),
            "language_match": metrics.language_match(best.text, to, space.languages),
            "empty": float(not best.text.strip()),
        }
        if to == example.lang:
            written_1D = space.concepts([each.text], to)
            scores["similarity"] = float(cosines(each.concept[None], written_1D)[0, 0])
        records.append(
            record_head("speech", system, example, to)
            | {
                "source": [each.text],
                "target": [target],
                "prediction": [best.text],
                "scores": present(scores),
            }
        )
    return records


def _retrieval(
    system: System, heard: Sequence[_Heard], lang: str, context: Context
) -> list[dict[str, Any]]:
    spoken_SD = np.stack([each.concept for each in heard])
    written_SD = context.space.concepts([each.text for each in heard], lang)
    scores = {
        "xsim": xsim(spoken_SD, written_SD),
        "speech_to_text": nearest_text(spoken_SD, written_SD),
    }
    return [
        measured("speech", system.name, lang, name, score, None, None, len(heard))
        for name, score in scores.items()
    ]


def nearest_text(spoken_SD: np.ndarray, written_SD: np.ndarray) -> float:
    """Return the percentage of recordings whose nearest text, by cosine, is their own."""
    cosine_SS = cosines(spoken_SD, written_SD)
    # By the distance from the best, not by its place: of two equal texts either one is right.
    return 100 * float((cosine_SS.max(axis=1) - np.diag(cosine_SS) < _EQUAL).mean())
