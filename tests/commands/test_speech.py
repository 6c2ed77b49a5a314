"""Recordings in the commands: concepts with times, captions, citations and errors.

The speech encoder has random weights, so the texts mean nothing.
"""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lcm_cli.commands import _road
from lcm_cli.documents import Document, read_concepts, writing
from lcm_cli.documents.recording import RATE
from lcm_cli.evaluation.spoken import nearest_text
from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.encoder import SpeechEncoder
from lcm_cli.speech.speech import save

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("silero_vad")

Run = Callable[..., Any]
CLIPS = Path(__file__).resolve().parent.parent.parent / "examples" / "speech"
SHAPES = SpeechShapes(1, 32, 4, 48, 5, 1, 2, 40, 32, max_length=1000)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a speech encoder for the space with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder") / "heard"
    save(SpeechEncoder(SHAPES), SpeechConfig("heard", "MIT", ("eng_Latn",), ("random",), SHAPES),
         folder)  # fmt: skip
    return folder


@pytest.fixture
def hear(road: Run, encoder: Path) -> Run:
    """Run `lcm` with the random space and speech encoder."""
    return functools.partial(road, LCM_SPEECH=str(encoder))


@pytest.fixture(scope="session")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of three sentences, from 1.0, 3.3 and 6.0 s on."""
    return speak(tmp_path_factory.mktemp("talk") / "talk.wav", (1, 2, 3), (1, 3.3, 6), 9)


def speak(path: Path, numbers: tuple[int, ...], starts: tuple[float, ...], seconds: float) -> Path:
    samples = np.zeros(round(seconds * RATE), np.float32)
    for number, start in zip(numbers, starts, strict=True):
        clip = soundfile.read(CLIPS / f"{number}.ogg", dtype="float32")[0]
        samples[round(start * RATE) :][: len(clip)] = clip
    soundfile.write(path, samples, RATE)
    return path


def documents(path: Path) -> list[Document]:
    return list(read_concepts([str(path)])[1])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.safetensors"])
def test_embedded_with_times(hear: Run, talk: Path, tmp_path: Path, name: str) -> None:
    done = hear("embed", talk, "-o", tmp_path / name)
    assert done.code == 0, done.stderr
    assert "embedded 3 sentences of 1 document" in done.stderr
    (document,) = documents(tmp_path / name)
    assert (document.id, document.lang) == ("talk.wav", "eng_Latn")
    assert document.concepts is not None and document.concepts.shape == (3, 32)
    starts = [start for start, _ in document.times]
    assert starts == pytest.approx([0.9, 3.2, 5.9], abs=0.15)
    assert all(1 < end - start < 3.2 for start, end in document.times)
    assert len(document.sentences) == 3


def test_fragility_needs_text(hear: Run, talk: Path, tmp_path: Path) -> None:
    done = hear("embed", talk, "-o", tmp_path / "a.parquet", "--fragility")
    assert (done.code, "the first documents are recordings" in done.stderr) == (2, True)


def test_embedding_twice_gives_the_same_bytes(hear: Run, talk: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert hear("embed", talk, "-o", tmp_path / f"{name}.jsonl").code == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three recordings with speech, and a silent one between them."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name, number in (("a.wav", 1), ("c.flac", 2), ("d.ogg", 3)):
        speak(folder / name, (number,), (0.5,), 4)
    speak(folder / "b.wav", (), (), 2)
    return folder


def test_a_silent_recording_is_reported_and_the_others_are_kept(
    hear: Run, folder: Path, tmp_path: Path
) -> None:
    done = hear("embed", folder, "-o", tmp_path / "concepts")
    assert done.code == 1
    assert "b.wav has no speech in it (2.0 s)" in done.stderr
    assert [each.id for each in documents(tmp_path / "concepts")] == ["a.wav", "c.flac", "d.ogg"]


@pytest.mark.slow
def test_a_stopped_data_set_is_resumed(
    hear: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = writing.open_writer.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(defaults, "shard_bytes", 1)  # a shard for each recording
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert hear("embed", folder, "-o", whole).code == 1
    true_hear, heard = _road.hear, []

    def interrupted(prepared: Any, *rest: Any) -> Any:
        heard.append(prepared.document.id)
        if prepared.document.id == "d.ogg":
            raise KeyboardInterrupt
        return true_hear(prepared, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(_road, "hear", interrupted)
        assert hear("embed", folder, "-o", stopped).code == 130
    assert heard == ["a.wav", "b.wav", "c.flac", "d.ogg"]
    done = hear("embed", folder, "-o", stopped)
    assert "resuming after 2 finished documents" in done.stderr
    manifests = [(path / "manifest.json").read_text() for path in (whole, stopped)]
    assert manifests[0] == manifests[1]


def test_translated_with_times(hear: Run, talk: Path) -> None:
    done = hear("translate", talk, "--to", "fr", "--json")
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout)
    sentences = record["sentences"]
    assert [each["start"] for each in sentences] == pytest.approx([0.9, 3.2, 5.9], abs=0.15)
    assert all(each["start"] < each["end"] for each in sentences)
    assert set(record["translations"]) == {"fra_Latn"}


def test_citations_show_the_times(hear: Run, talk: Path) -> None:
    for command in (("translate", "--to", "fr"), ("summarize", "--length", "2", "--force")):
        done = hear(*command, talk, "--cite")
        assert done.code == 0, done.stderr
        assert "0:03–0:0" in done.stdout


@pytest.mark.parametrize(
    ("suffix", "clock"),
    [("srt", "00:00:0%d,"), pytest.param("vtt", "00:00:0%d.", marks=pytest.mark.slow)],
)
def test_captions(hear: Run, talk: Path, tmp_path: Path, suffix: str, clock: str) -> None:
    target = tmp_path / f"out.{suffix}"
    done = hear("translate", talk, "--to", "fr", "-o", target)
    assert done.code == 0, done.stderr
    text = target.read_text(encoding="utf-8")
    assert text.startswith("WEBVTT\n\n" if suffix == "vtt" else "1\n")
    cues = [line for line in text.splitlines() if "-->" in line]
    assert [cue[:9] for cue in cues] == [clock % second for second in (0, 3, 5)]
    again = hear("translate", target, "--from", "fr", "--to", "de")  # lcm reads what it wrote
    assert again.code == 0, again.stderr


@pytest.mark.slow
def test_captions_of_several_recordings_and_languages(
    hear: Run, talk: Path, tmp_path: Path
) -> None:
    other = shutil.copy(talk, tmp_path / "speech.wav")
    out = tmp_path / "out"
    done = hear("translate", talk, other, "--to", "fr", "--to", "de", "-o", f"{out}/",
                "--output-template", "{stem}.{lang}.srt")  # fmt: skip
    assert done.code == 0, done.stderr
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{stem}.{lang}.srt" for stem in ("speech", "talk") for lang in ("de", "fr")]
    assert (out / names[0]).read_text(encoding="utf-8").count("-->") == 3


def test_a_stream(hear: Run, talk: Path) -> None:
    found = [json.loads(hear("translate", *call, "--to", "fr", "--json", input=data).stdout)
             for call, data in (((talk,), b""), (("-",), talk.read_bytes()))]  # fmt: skip
    assert found[0]["sentences"] == found[1]["sentences"]


def test_speech_and_text_together(hear: Run, talk: Path, story: Path, tmp_path: Path) -> None:
    done = hear("embed", story, talk, story, "-o", tmp_path / "a.parquet")
    assert done.code == 0, done.stderr
    found = documents(tmp_path / "a.parquet")
    assert [len(each.times) for each in found] == [0, 3, 0]


@pytest.mark.parametrize("package", ["soundfile", "soxr", "silero_vad"])
def test_a_missing_package(
    hear: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(44_100, np.float32), 44_100)
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    done = hear("translate", path, "--to", "fr")
    assert done.code != 0
    assert f"needs the package {package.replace('_', '-')}" in done.stderr
    assert "pip install 'lcm-cli[speech]'" in done.stderr


def test_an_encoder_of_another_space(lcm: Run, encoder: Path, talk: Path) -> None:
    done = lcm("translate", talk, "--to", "fr", "--speech", encoder, "--space", "tiny")
    assert done.code != 0
    assert "belongs to the space random, not to tiny" in done.stderr


def test_a_language_that_no_encoder_knows(lcm: Run, hear: Run, talk: Path) -> None:
    done = lcm("translate", talk, "--from", "nl", "--to", "fr", "--space", "tiny")
    assert done.code != 0
    assert "the space tiny has no speech encoder for nld_Latn" in done.stderr
    done = hear("translate", talk, "--from", "nl", "--to", "fr")
    assert done.code != 0
    assert "nld_Latn" in done.stderr or "Dutch" in done.stderr


def evaluate(hear: Run, encoder: Path, data: Path, *rest: str | Path) -> Any:
    return hear("evaluate", encoder, "--task", "speech", "--data", data, "--json", *rest)


def test_evaluation(hear: Run, encoder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = evaluate(hear, encoder, CLIPS / "eval_speech.jsonl", "-o", report)
    assert done.code == 0, done.stderr
    found = {(e["lang"], e["metric"]): e for e in json.loads(done.stdout)["results"]}
    for lang in ("eng_Latn", "eng_Latn-deu_Latn", "eng_Latn-fra_Latn"):
        assert 0 <= found[lang, "chrf"]["value"] <= 100
        assert found[lang, "chrf"]["count"] == 6
    for metric in ("xsim", "speech_to_text"):
        assert 0 <= found["eng_Latn", metric]["value"] <= 100
    lines = (report / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["source"] == ["The dog ran to the river."]
    assert "Speech" in (report / "report.html").read_text(encoding="utf-8")


def test_evaluation_of_a_table_with_bad_recordings(
    hear: Run, encoder: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(CLIPS, clips)
    soundfile.write(clips / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(clips / "long.wav", np.full(30 * RATE, 0.1, np.float32), RATE)
    names = ("1.ogg", "none.wav", "silent.wav", "long.wav", "notes.txt", "", "2.ogg")
    rows = [f"{name}\tThe dog ran.\tLe chien a couru." for name in names]
    (clips / "notes.txt").write_text("These are words.")
    (clips / "data.tsv").write_text("audio\ttext\tfra_Latn\n" + "\n".join(rows) + "\n")
    done = evaluate(hear, encoder, clips / "data.tsv", "--to", "fr")
    assert done.code == 1
    for message in (
        "row 2: {}, speech: {}/none.wav does not exist",
        "row 3: {}, speech: utterance 0 is silent",
        "row 4: {}, speech: {}/long.wav lasts 30.0 s, but the encoder takes 20.0 s",
        "row 5: {}, speech: {}/notes.txt is not a recording",
        "row 6: {}, speech: the row has no audio",
    ):
        assert message.format(encoder, clips) in " ".join(done.stderr.split()), message
    results = json.loads(done.stdout)["results"]
    assert {e["count"] for e in results if e["lang"] != "all"} == {2}
    assert {e["lang"] for e in results} == {"eng_Latn", "eng_Latn-fra_Latn", "all"}


def test_evaluation_without_recordings(hear: Run, encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "The dog ran to the river."}\n')
    done = evaluate(hear, encoder, data)
    assert (done.code, "has no column 'audio'" in done.stderr) == (2, True)
    done = hear("evaluate", "lead-3", "--task", "speech", "--data", CLIPS / "eval_speech.jsonl")
    assert done.code != 0
    assert "lead-3" in done.stderr


def test_the_nearest_text_is_their_own() -> None:
    spoken = np.eye(4, dtype=np.float32)
    assert nearest_text(spoken, spoken) == 100
    assert nearest_text(spoken, spoken[[1, 0, 2, 3]]) == 50
    twice = spoken[[0, 0, 2, 3]]  # two recordings of one text
    assert nearest_text(twice, twice) == 100
