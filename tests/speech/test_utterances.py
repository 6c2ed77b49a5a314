"""Cutting recordings into utterances: at pauses, at the limit, and in endless ones."""

import sys
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from lcm_cli.documents.recording import RATE
from lcm_cli.errors import UsageError
from lcm_cli.speech import utterances as module
from lcm_cli.speech.utterances import LONGEST, WINDOW, Cutter, utterances

pytest.importorskip("soundfile")
pytest.importorskip("silero_vad")


def silence(seconds):
    return np.zeros(round(seconds * RATE), np.float32)


def hiss(seconds, strength, seed=0):
    rng = np.random.default_rng(seed)
    return (strength * rng.standard_normal(round(seconds * RATE))).astype(np.float32)


def blocks(samples, size=RATE):
    return (samples[start : start + size] for start in range(0, len(samples), size))


@pytest.fixture(scope="module")
def talk(clips):
    """Six sentences with pauses from 0.5 to 2 s, and their times."""
    parts, times, now = [silence(1)], [], 1.0
    for clip, pause in zip(clips, (0.5, 1, 2, 0.7, 1.5, 1), strict=True):
        times.append((now, now + len(clip) / RATE))
        parts += [clip, silence(pause)]
        now = times[-1][1] + pause
    return np.concatenate(parts), times


@pytest.mark.parametrize("decibels", [None, 20])
def test_cuts_at_the_pauses(talk, decibels):
    samples, times = talk
    if decibels is not None:
        power = np.sqrt(np.mean(samples[samples != 0] ** 2))
        samples = samples + hiss(len(samples) / RATE, power * 10 ** (-decibels / 20))
    found = list(utterances(blocks(samples)))
    assert len(found) == len(times)
    # The margin of 0.1 s is part of an utterance.
    for each, (start, end) in zip(found, times, strict=True):
        assert each.start == pytest.approx(start - 0.1, abs=0.15)
        assert each.end == pytest.approx(end + 0.1, abs=0.15)


def test_samples_are_those_at_the_times(talk):
    samples, _ = talk
    for each in utterances(blocks(samples)):
        start = round(each.start * RATE)
        assert np.array_equal(each.samples, samples[start : start + len(each.samples)])
        assert each.end == pytest.approx(each.start + len(each.samples) / RATE)


@pytest.mark.parametrize("size", [1000, WINDOW, 16_384])
def test_the_size_of_blocks_does_not_matter(talk, size):
    samples = talk[0][: 6 * RATE]
    found = [(each.start, each.end) for each in utterances(blocks(samples, size))]
    assert found == [(each.start, each.end) for each in utterances([samples])]


@pytest.mark.parametrize("samples", [silence(0), silence(1 / RATE), silence(3), hiss(3, 0.1)])
def test_no_speech_no_utterance(samples):
    assert list(utterances(blocks(samples))) == []


def test_speech_without_pauses_is_cut_at_the_limit(clips):
    speech = np.concatenate([np.concatenate(clips)] * 5)  # 50 s without silence
    found = list(utterances(blocks(speech)))
    assert len(found) >= 2
    assert all(LONGEST / 3 < each.end - each.start <= LONGEST for each in found[:-1])
    for before, after in pairwise(found):
        assert before.end <= after.start


def test_the_limit_of_an_encoder_applies(clips):
    found = list(utterances(blocks(np.concatenate(clips)), longest=2.0))
    assert len(found) >= 5
    assert max(each.end - each.start for each in found) <= 2.0


def cut(probabilities, longest=LONGEST):
    """Return the first and the last window of each utterance."""
    cutter, window = Cutter(longest), silence(WINDOW / RATE)
    found = [each for p in probabilities for each in cutter.add(window, p)]
    seconds = WINDOW / RATE
    found += cutter.finish()
    return [(round(each.start / seconds), round(each.end / seconds) - 1) for each in found]


def test_speech_begins_above_one_half_and_lasts_above_a_third():
    assert cut([0.4] * 20) == []
    assert cut([0.0] * 10 + [0.6] + [0.4] * 9 + [0.1] * 30) == [(7, 22)]


def test_a_click_is_not_an_utterance():
    assert cut([0.0] * 20 + [0.9] * 2 + [0.0] * 20) == []


def test_a_long_utterance_is_cut_where_speech_is_least_likely():
    speech = [0.9] * 100
    speech[70] = 0.5
    assert cut(speech, longest=80 * WINDOW / RATE) == [(0, 70), (71, 99)]


@pytest.mark.slow
def test_an_hour_needs_the_memory_of_one_utterance():
    """Speech without a pause, the worst case; the detector is left out."""
    cutter = Cutter(LONGEST)
    window = np.zeros(WINDOW, np.float32)
    count = 3600 * RATE // WINDOW
    total = 0
    tracemalloc.start()
    for _ in range(count):
        total += sum(len(each.samples) for each in cutter.add(window.copy(), 0.9))
    total += sum(len(each.samples) for each in cutter.finish())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == count * WINDOW
    assert peak < 3 * LONGEST * RATE * 4  # bytes


def test_a_missing_detector_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)  # importing it fails
    with pytest.raises(UsageError, match="needs the package silero-vad") as caught:
        list(utterances([silence(1)]))
    assert "lcm-cli[speech]" in caught.value.hint


def test_the_detector_leaves_the_number_of_threads(talk):
    import torch

    before = torch.get_num_threads()
    module.load_detector()
    assert torch.get_num_threads() == before
