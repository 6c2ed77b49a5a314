"""Requests share batches, and their results are the same as alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lcm_cli.errors import IntegrityError
from lcm_cli.serving.batching import (
    Deadline,
    OutOfTimeError,
    SharedSpace,
    StoppedError,
    run_request,
)
from lcm_cli.space import DecodeOptions

SENTENCES = [
    "The cat sleeps.",
    "He has a red boat and two dogs.",
    "Every morning the old man goes to the river.",
    "It is cold.",
    "Where is the house of the girl?",
    "I do not know.",
]


@pytest.fixture
def shared(space):
    shared = SharedSpace(space)
    yield shared
    shared.close()


def together(shared, calls):
    """Run calls at the same time, so that all of them are in the queue at once."""
    barrier = threading.Barrier(len(calls))

    def one(call):
        barrier.wait()
        return run_request(shared, Deadline(60), call)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


def jobs_in_batches(shared):
    """Return how many jobs and batches there were."""
    lines = dict(line.rsplit(" ", 1) for line in shared.metrics.jobs.lines())
    jobs = sum(float(value) for name, value in lines.items() if "_sum" in name)
    return jobs, sum(float(value) for name, value in lines.items() if "_count" in name)


def test_encodings_share_batches_and_equal_those_alone(space, shared):
    alone = [space.encode([text], "eng_Latn").concepts for text in SENTENCES]
    calls = [lambda t=text: shared.encode([t], "eng_Latn").concepts for text in SENTENCES]
    for found, expected in zip(together(shared, calls), alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    jobs, batches = jobs_in_batches(shared)
    assert jobs == len(SENTENCES) and batches < jobs


def test_decodings_share_batches_by_language_and_equal_those_alone(space, shared):
    concepts = space.encode(SENTENCES, "eng_Latn").concepts
    wanted = [(n, code) for n in range(4) for code in ("fra_Latn", "deu_Latn")]
    alone = [space.decode(concepts[n : n + 1], [code]) for n, code in wanted]
    calls = [lambda n=n, c=code: shared.decode(concepts[n : n + 1], [c]) for n, code in wanted]
    for found, expected in zip(together(shared, calls), alone, strict=True):
        for code, ((text,),) in expected.items():
            assert found[code][0][0].text == text.text
            assert found[code][0][0].score == pytest.approx(text.score, abs=1e-4)
    jobs, batches = jobs_in_batches(shared)
    assert jobs == len(wanted) and 2 <= batches < jobs


@pytest.mark.slow
def test_long_calls_are_cut_into_jobs_and_joined(space, shared):
    many = [f"{n}: {SENTENCES[n % 6]}" for n in range(300)]
    many[290] = "the cat and the dog " * 60  # over the token limit
    found, expected = shared.encode(many, "eng_Latn"), space.encode(many, "eng_Latn")
    np.testing.assert_allclose(found.concepts, expected.concepts, atol=1e-5)
    assert [cut.index for cut in found.truncated] == [290]
    assert found.truncated == expected.truncated


def test_draws_are_those_of_a_single_call(space, shared):
    concepts = space.encode(SENTENCES[:3], "eng_Latn").concepts
    options = DecodeOptions(sample=True, seed=3)
    expected = space.decode(concepts, ["eng_Latn"], options)
    calls = [lambda: shared.decode(concepts, ["eng_Latn"], options)] * 2
    for found in together(shared, calls):
        assert [[t.text for t in row] for row in found["eng_Latn"]] == [
            [t.text for t in row] for row in expected["eng_Latn"]
        ]


def test_a_faulty_job_fails_alone(space, shared):
    good = space.encode(SENTENCES[:1], "eng_Latn").concepts
    bad = np.full_like(good, np.nan)
    with pytest.raises(IntegrityError, match="not finite"):
        shared.decode(bad, ["fra_Latn"])

    def unknown():
        with pytest.raises(Exception, match="xxx"):
            shared.encode(["A cat."], "xxx_Latn")

    calls = [unknown, lambda: shared.encode(SENTENCES[:1], "eng_Latn").concepts]
    np.testing.assert_allclose(together(shared, calls)[1], good, atol=1e-5)


def test_a_request_ends_at_its_deadline(shared):
    deadline = Deadline(60)

    def work():
        shared.encode(["One."], "eng_Latn")
        deadline.cancel()
        shared.encode(["Two."], "eng_Latn")

    with pytest.raises(OutOfTimeError):
        run_request(shared, deadline, work)


def test_nothing_waits_for_a_closed_space(space):
    shared = SharedSpace(space)
    shared.close()
    with pytest.raises(StoppedError):
        shared.encode(["One."], "eng_Latn")


def test_no_sentences_and_no_languages(shared):
    assert shared.encode([], "eng_Latn").concepts.shape == (0, shared.dim)
    assert shared.decode(np.zeros((0, shared.dim)), ["fra_Latn"]) == {"fra_Latn": []}
    assert shared.decode(np.zeros((1, shared.dim)), []) == {}
