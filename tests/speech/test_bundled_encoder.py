"""The bundled speech encoder hears synthetic speech, in the bundled space."""

import json
from pathlib import Path

import numpy as np

from lcm_cli.space import load_space
from lcm_cli.space.similarity import cosines
from lcm_cli.speech import load_speech_encoder
from lcm_cli.training.data.utterances import read_audio

CLIPS = Path(__file__).parent.parent / "data" / "speech" / "clips.jsonl"


def test_it_finds_the_sentence_that_is_spoken():
    lines = [json.loads(line) for line in CLIPS.read_text().splitlines()]
    texts = list(dict.fromkeys(line["text"] for line in lines))
    space = load_space("tiny", device="cpu")
    speech = load_speech_encoder("tiny-speech-eng", device="cpu")
    speech.check_space(space.name, space.fingerprint)
    heard = speech.encode([read_audio(CLIPS.parent / line["audio"]) for line in lines]).numpy()
    nearest = cosines(heard, space.encode(texts, "eng_Latn").concepts).argmax(axis=1)
    found = [texts[i] == line["text"] for i, line in zip(nearest, lines, strict=True)]
    assert np.mean(found) > 0.9
