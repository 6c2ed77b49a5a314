"""Training a speech encoder: learning, exact resumption, finetuning, and errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.space import load_space
from lcm_cli.speech.features import features, log_mel
from lcm_cli.speech.speech import load_speech_encoder
from lcm_cli.training.data.utterances import Noise, mask, read_audio, standardized
from lcm_cli.training.loop import Run
from lcm_cli.training.recipes.load import load_recipe
from lcm_cli.training.trainers.speech import SpeechTrainer, make_speech_trainer

CLIPS = Path(__file__).parent.parent.parent / "data" / "speech" / "clips.jsonl"
RECIPE = f"""
kind = "speech"
name = "micro"
licence = "MIT"
languages = ["eng_Latn"]
[data]
train = ["{CLIPS.as_posix()}"]
dev = ["{CLIPS.as_posix()}"]
[shape]
layers = 1
model_dim = 64
heads = 2
ffn_dim = 64
kernel = 3
pool_heads = 2
pool_ffn_dim = 64
bins = 20
stride = 8
[train]
steps = 12
batch_seconds = 8
warmup = 4
learning_rate = 1e-2
ctc = 0.1
ema = 0.9
dropout = 0.1
save_every = 5
eval_every = 100
sample_every = 0
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "micro.toml"
    path.write_text(RECIPE)
    return path


def begin(recipe: Path, folder: Path, *changes: str) -> SpeechTrainer:
    folder.mkdir(exist_ok=True)
    return make_speech_trainer(load_recipe(recipe, changes), folder, torch.device("cpu"))


def weights(trainer: SpeechTrainer) -> torch.Tensor:
    state = trainer.network.state_dict()
    return torch.cat([state[key].flatten() for key in sorted(state)])


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Return whether concepts agree as far as features in float16, with 11 bits, allow."""
    return bool(np.abs(ours - theirs).max() < 2**-9 * np.abs(theirs).max())


def waves() -> list[np.ndarray]:
    lines = [json.loads(line) for line in CLIPS.read_text().splitlines()]
    return [read_audio(CLIPS.parent / line["audio"]) for line in lines]


@pytest.mark.slow
def test_it_learns_a_few_clips_by_heart(recipe, tmp_path):
    """What is exported finds every sentence, and the space decodes it."""
    off = [f"train.{name}=0.0" for name in ("dropout", "mask", "noise", "ema")]
    changes = ("train.steps=80", "train.batch_seconds=30")
    trainer = begin(recipe, tmp_path / "run", *changes, *off)
    records = []
    assert Run(trainer, tmp_path / "run", report=records.append).train()
    scores = next(record["eval"] for record in records if "eval" in record)
    assert scores["xsim"] == 100 and scores["loss"] < 0.4
    encoder = load_speech_encoder(str(tmp_path / "run" / "speech"), device="cpu")
    concepts = encoder.encode(waves()).numpy()
    assert close(concepts, trainer.concepts(trainer.data))
    space = load_space("tiny", device="cpu")
    encoder.check_space(space.name, space.fingerprint)
    heard = space.decode(concepts[:2], ["eng_Latn"])["eng_Latn"]
    assert [best[0].text for best in heard] == ["The dog sleeps."] * 2


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(recipe, tmp_path):
    whole = begin(recipe, tmp_path / "whole")
    assert Run(whole, tmp_path / "whole").train()
    first = Run(begin(recipe, tmp_path / "cut"), tmp_path / "cut")
    first.live = lambda record: setattr(first, "stop", record["step"] == 7)
    assert not first.train()
    again = Run(begin(recipe, tmp_path / "cut"), tmp_path / "cut")
    again.resume()
    assert again.trainer.step == 7
    assert again.train()
    assert torch.equal(weights(whole), weights(again.trainer))
    assert all(map(torch.equal, whole.average.weights, again.trainer.average.weights))


def test_finetuning_starts_with_the_concepts_of_its_start(recipe, tmp_path):
    new = begin(recipe, tmp_path / "new")
    new.train_step()
    new.export(tmp_path / "new")
    change = f"start={(tmp_path / 'new' / 'speech').as_posix()}"
    old = begin(recipe, tmp_path / "old", change, "train.ema=0.0", "shape.layers=3")
    wanted = load_speech_encoder(str(tmp_path / "new" / "speech"), device="cpu").encode(waves())
    assert close(old.concepts(old.data), wanted.numpy())
    assert old.config.encoder.layers == 1


def test_frames_are_those_of_the_encoder_in_use():
    wave = torch.from_numpy(waves()[0])
    assert torch.equal(standardized(log_mel(wave, 20)[None], 8)[0], features(wave, 20, 8))


def test_a_batch_has_all_utterances_and_no_padding(recipe, tmp_path):
    data = begin(recipe, tmp_path / "run").data
    batches = data.batches(0, 0, 4.0)
    assert sorted(np.concatenate(batches)) == list(range(len(data)))
    for batch in batches:
        steps = int(data.lengths_U[batch].max()) + 5
        assert len(batch) == 1 or len(batch) * (steps - 5) <= 400
        rows = data.rows(batch, steps, np.random.default_rng(0))
        for index, row in zip(batch, rows, strict=True):
            own = torch.from_numpy(data.mel(index).astype(np.float32))
            spans = row.unfold(0, len(own), 1).transpose(1, 2)
            offset = int((spans == own).all(dim=(1, 2)).nonzero()[0])
            assert (row[:offset] == own[0]).all() and (row[offset + len(own) :] == own[-1]).all()


def test_noise_has_the_asked_level():
    """At 0 dB the energy doubles; at -20 dB it is 101 times as high."""
    mel = torch.zeros(40, 200, 20)
    for snr, factor in ((0.0, 2.0), (-20.0, 101.0)):
        mixed = Noise(20).mixed(mel, 1.0, (snr, snr), np.random.default_rng(0))
        energies = mixed.exp().mean(dim=(1, 2))
        assert energies.min() > 0.6 * factor and energies.max() < 1.6 * factor
        assert abs(energies.mean() / factor - 1) < 0.15
    assert Noise(20).mixed(mel, 0.0, (0.0, 0.0), np.random.default_rng(0)) is mel


def test_masks_are_one_span_of_bands_and_one_of_frames():
    masked = mask(torch.ones(50, 30, 80), 20, 0.3, np.random.default_rng(0))
    frames, bands = masked.amax(dim=2), masked.amax(dim=1).view(50, 4, 20)
    assert (bands == bands[:, :1]).all()
    for kept in (*frames, *bands[:, 0]):
        gone = (kept == 0).nonzero().flatten()
        assert len(gone) <= 0.3 * len(kept)
        assert not len(gone) or int(gone[-1] - gone[0]) == len(gone) - 1
    assert 0.7 < masked.mean() < 0.85


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "A."}', "audio"),
        ('{"audio": "none.ogg", "text": "A."}', "no such file"),
        ('{"audio": "a.ogg", "text": "A.", "lang": "fra_Latn"}', "fra_Latn"),
        ("A.", "not JSON"),
    ],
)
def test_bad_lines_are_errors(recipe, tmp_path, line, message):
    table = tmp_path / "bad.jsonl"
    table.write_text(line + "\n")
    with pytest.raises((IntegrityError, NotFoundError), match=message):
        begin(recipe, tmp_path / "run", f'data.train=["{table.as_posix()}"]')


def test_utterances_of_other_durations_are_left_out(recipe, tmp_path):
    trainer = begin(recipe, tmp_path / "run", "train.max_seconds=1.0")
    assert 0 < trainer.data.left_out < 12 and "left out" in trainer.summary
    with pytest.raises(IntegrityError, match="lasts between"):
        begin(recipe, tmp_path / "run", "train.max_seconds=0.1")


def test_the_command_trains_and_estimates(lcm, recipe, tmp_path):
    done = lcm("train", recipe, "--dry-run", "--json", "--device", "cpu")
    found = json.loads(done.stdout)
    assert found["unit"] == "utterances" and found["parameters"] > 100_000 and found["minutes"] > 0
    folder = tmp_path / "run"
    done = lcm("train", recipe, "-o", folder, "--set", "train.steps=2", "--device", "cpu")
    assert done.code == 0, done.stderr
    assert load_speech_encoder(str(folder / "speech")).languages == ("eng_Latn",)
