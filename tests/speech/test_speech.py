"""Speech encoders in use: batches, bad audio, storage; and their network in training."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.speech import load_speech_encoder
from lcm_cli.speech.encoder import FrameNorm, SpeechEncoder
from lcm_cli.speech.features import RATE, features, steps
from lcm_cli.speech.speech import save, write
from lcm_cli.weights import read_weights


def utterances(*seconds):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, int(length * RATE)).astype(np.float32) for length in seconds]


@pytest.fixture
def speech(folder):
    return load_speech_encoder(str(folder), device="cpu")


def test_concepts_do_not_depend_on_the_batch(speech):
    waveforms = utterances(1.2, 0.3, 0.8, 2.0, 0.035)
    together = speech.encode(waveforms)
    assert together.shape == (5, 24)
    assert together.dtype == torch.float32
    for waveform, concept in zip(waveforms, together, strict=True):
        assert torch.allclose(speech.encode([waveform])[0], concept, atol=1e-5)


def test_any_view_of_samples(speech):
    (waveform,) = utterances(1)
    backwards = waveform[::-1].copy()[::-1]
    backwards.flags.writeable = False
    assert torch.equal(speech.encode([backwards]), speech.encode([waveform]))


def test_batches_hold_ten_seconds(speech):
    lengths = [int(seconds * RATE) for seconds in (1.0, 6.0, 1.5, 4.0, 11.0, 2.0, 2.0)]
    batches = list(speech._batches(lengths))
    assert batches == [[0, 2, 5, 6], [3], [1], [4]]


def test_padding_is_never_read(network):
    features_NLF = torch.randn(2, 9, 160)
    lengths = torch.tensor([9, 4])
    wanted = network(features_NLF, lengths)
    features_NLF[1, 4:] = 1e4
    assert torch.equal(network(features_NLF, lengths), wanted)
    assert torch.allclose(network(features_NLF[1:, :4], lengths[1:]), wanted[1:], atol=1e-5)


def test_progress_and_empty_input(speech):
    done = []
    speech.encode(utterances(1, 2, 2, 2, 1, 2), progress=done.append)
    assert sum(done) == 6 and len(done) == 2
    assert speech.encode([]).shape == (0, 24)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), r"utterance 1 is too short: 0\.000 s"),
        (np.ones(559, np.float32), r"utterance 1 is too short: 0\.035 s"),
        (np.zeros(RATE, np.float32), "utterance 1 is silent"),
        (np.full(RATE, np.nan, np.float32), "utterance 1 has 16000 samples that are not finite"),
        (np.zeros(3 * RATE, np.float32), r"utterance 1 is too long: 3\.0 s"),
        (np.zeros(RATE, np.int16), "utterance 1 is int16"),
        (np.zeros((2, RATE), np.float32), r"utterance 1 is float32 of shape \(2, 16000\)"),
    ],
)
def test_bad_audio_is_refused_by_its_index(speech, waveform, message):
    with pytest.raises(IntegrityError, match=message) as caught:
        speech.encode([*utterances(1), waveform])
    assert caught.value.hint


def test_shortest_and_longest_can_be_encoded(speech):
    assert (speech.shortest, speech.longest) == (0.035, 2.015)
    found = speech.encode(utterances(speech.shortest, speech.longest))
    assert found.isfinite().all()


def test_a_band_without_variance_is_zero():
    waveform = torch.zeros(4 * 160 + 400)
    waveform[700:] = 0.1 * torch.randn(len(waveform) - 700)
    assert features(waveform).isfinite().all()
    assert steps(len(waveform)) == 5
    assert features(waveform).shape == (2, 160)


def test_int8(network, speech, folder, tmp_path):
    write(speech.config, read_weights(speech.files.weights), tmp_path / "int8", store="int8")
    assert (tmp_path / "int8" / "model.safetensors").stat().st_size < (
        0.5 * speech.files.weights.stat().st_size
    )
    waveforms = utterances(1, 2)
    wanted = speech.encode(waveforms)
    for precision in ("float32", "int8"):
        rounded = load_speech_encoder(str(tmp_path / "int8"), device="cpu", precision=precision)
        assert torch.cosine_similarity(rounded.encode(waveforms), wanted).min() > 0.999


def test_half_precision(speech, folder):
    waveforms = utterances(1, 2)
    half = load_speech_encoder(str(folder), device="cpu", precision="bfloat16")
    found = torch.cosine_similarity(half.encode(waveforms), speech.encode(waveforms))
    assert found.min() > 0.999


def test_space_of_the_concepts(speech):
    speech.check_space("tiny")
    speech.check_space("other", "0123456789abcdef")
    for other in (("other", ""), ("tiny", "fedcba9876543210")):
        with pytest.raises(IntegrityError, match="belongs to the space tiny"):
            speech.check_space(*other)


def test_saving(network, speech, folder, tmp_path):
    save(network, speech.config, tmp_path / "copy")
    again = load_speech_encoder(str(tmp_path / "copy"), device="cpu")
    assert again.config == speech.config
    assert torch.equal(again.encode(utterances(1)), speech.encode(utterances(1)))
    with pytest.raises(UsageError, match="exists already"):
        save(network, speech.config, tmp_path / "copy")


def test_damaged_checkpoints(folder, tmp_path):
    with pytest.raises(NotFoundError, match="no speech encoder called 'nothing'"):
        load_speech_encoder("nothing")
    with pytest.raises(UsageError, match="tiny is a space, not a speech encoder"):
        load_speech_encoder("tiny")
    config = json.loads((folder / "config.json").read_text())
    for key, value, message in (
        ("kernel", 4, "kernel 4 must be odd"),
        ("heads", 5, "not a multiple of 5 heads"),
        ("layers", 0, "layers = 0"),
        ("layer", 1, "unknown key 'encoder.layer'"),
    ):
        changed = config | {"encoder": config["encoder"] | {key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        (tmp_path / "model.safetensors").write_bytes(b"")
        with pytest.raises(IntegrityError, match=message):
            load_speech_encoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"spaces": []}))
    with pytest.raises(IntegrityError, match="at least one language and one space"):
        load_speech_encoder(str(tmp_path))


def test_batch_statistics_exclude_padding():
    norm = FrameNorm(3).train()
    x_NML = torch.randn(2, 3, 6)
    mask_NL = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    x_NML[1, :, 2:] = 1e6
    y_NML = norm(x_NML, mask_NL)
    kept = y_NML.transpose(1, 2)[mask_NL]
    assert torch.allclose(kept.mean(0), torch.zeros(3), atol=1e-5)
    assert (y_NML[1, :, 2:] == 0).all()
    assert norm.running_var.max() < 10


@pytest.mark.slow
def test_training_reaches_every_parameter_and_fits(network):
    torch.manual_seed(0)
    network = SpeechEncoder(network.config).train()
    features_NLF, target_ND = torch.randn(4, 12, 160), torch.randn(4, 24)
    lengths = torch.tensor([12, 9, 12, 5])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (network(features_NLF, lengths) - target_ND).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # The attention's key biases shift all scores of a query alike, and so have no effect.
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("k_proj.bias") for name in without)
    assert losses[-1] < 0.1 * losses[0]


def test_lcm_without_speech_imports_none_of_it():
    code = "import sys, lcm_cli.app, lcm_cli.space.space; print('lcm_cli.speech' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
