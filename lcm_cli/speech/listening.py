"""From a recording to the concepts of its utterances."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lcm_cli.documents.recording import RATE, Recording
from lcm_cli.errors import IntegrityError
from lcm_cli.progress import Progress
from lcm_cli.speech.speech import Speech
from lcm_cli.speech.utterances import LONGEST, Utterance, utterances

_TOGETHER = 120.0  # seconds of utterances that are encoded together


@dataclass(frozen=True)
class Heard:
    """The concepts (N, D) float32 of N utterances, and the start and end of each in seconds."""

    concepts: np.ndarray
    times: list[tuple[float, float]]


def listen(recording: Recording, speech: Speech, progress: Progress | None = None) -> Heard:
    """Encode the utterances of a recording, which is read block by block.

    `progress` receives the seconds of audio done, as whole numbers. Raises IntegrityError for a
    damaged file and for a recording without speech.
    """
    found: list[np.ndarray] = []
    times: list[tuple[float, float]] = []
    done = 0
    longest = min(LONGEST, speech.longest)
    for group in _groups(utterances(recording.blocks(), longest)):
        # The margins of silence make an utterance long enough, unless the recording ends there.
        least = int(np.ceil(speech.shortest * RATE))
        waveforms = [np.pad(each.samples, (0, max(0, least - len(each.samples)))) for each in group]
        found.append(speech.encode(waveforms).numpy())
        times += [(round(each.start, 3), round(each.end, 3)) for each in group]
        if progress:
            progress(int(times[-1][1]) - done)
            done = int(times[-1][1])
    if not found:
        raise IntegrityError(
            f"{recording.name} has no speech in it ({recording.seconds:.1f} s)",
            "check the recording: it is silent, or has only music or noise",
        )
    if progress:
        progress(max(0, int(recording.seconds) - done))
    return Heard(np.concatenate(found), times)


def _groups(found: Iterator[Utterance]) -> Iterator[Sequence[Utterance]]:
    group: list[Utterance] = []
    for each in found:
        group.append(each)
        if sum(one.end - one.start for one in group) >= _TOGETHER:
            yield group
            group = []
    if group:
        yield group
