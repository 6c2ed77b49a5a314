"""Captured predictions: the teacher's outputs, noise per document, and interrupted captures."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rounding import additions, rounding

from lcm_cli.documents.shares import Share
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.models.checkpoint import build, load_model, save
from lcm_cli.models.config import SpaceRef, preset
from lcm_cli.space import load_space
from lcm_cli.training.distillation import distill
from lcm_cli.training.distillation.capturing import Captured
from lcm_cli.training.distillation.distill import Lesson
from lcm_cli.training.distillation.draws import DocumentDraws, given_draws, places
from lcm_cli.training.distillation.predictions import OUTPUTS, TaughtData
from lcm_cli.training.distillation.teaching import Teaching, predicted, shared_draws

CPU = torch.device("cpu")
SMALLER = {
    "base": ("model.model_dim=32", "model.transformer.layers=1"),
    "sonar_llm": ("model.model_dim=32", "model.transformer.layers=1"),
    "one_tower": ("model.model_dim=32", "model.transformer.layers=1"),
    "two_tower": ("model.model_dim=32", "model.denoiser.layers=1"),
}
DOCUMENTS, GROUP = 23, 3
SHARDS = 8  # at 600 bytes, each of the row groups
Made = Callable[..., Lesson]


@pytest.fixture(scope="module")
def files(tmp_path_factory, random_space) -> Path:
    """A folder with data in small row groups, plain and in pairs, and untrained teachers."""
    space = load_space(str(random_space), device="cpu")
    folder = tmp_path_factory.mktemp("capturing")
    rng = np.random.default_rng(0)
    lists = pa.list_(pa.list_(pa.float16(), space.dim))

    def column(lengths):
        documents = [list(rng.standard_normal((n, space.dim)).astype(np.float16)) for n in lengths]
        return pa.array(documents, lists)

    lengths = [*rng.integers(2, 9, DOCUMENTS - 1), 30]  # the last one is wrapped
    plain = pa.table({"id": [*map(str, range(DOCUMENTS))], "concepts": column(lengths)})
    pq.write_table(plain, folder / "plain.parquet", row_group_size=GROUP)
    pairs = {"id": ["a", "b"], "concepts": column([4, 6]), "target_concepts": column([3, 2])}
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    for kind in SMALLER:
        torch.manual_seed(0)
        ref = SpaceRef(space.name, space.fingerprint)
        model = build(preset(kind, "nano", concept_dim=space.dim, space=ref))
        with torch.no_grad():  # new layers are the identity
            for weights in model.parameters():
                weights += 0.1 * torch.randn(weights.shape)
        save(model, folder / kind)
    return folder


@pytest.fixture
def lesson(model_recipe, files, tmp_path, monkeypatch) -> Made:
    """Prepare a student that learns from captured predictions in `tmp_path`/teacher."""
    monkeypatch.setattr(distill, "SHARD_BYTES", 600)

    def make(*changes: str, architecture: str = "base", data: str = '"plain"') -> Lesson:
        names = [f'"{files}/{name}.parquet"' for name in data.replace('"', "").split(", ")]
        recipe = model_recipe(
            f'distill.teacher="{files / architecture}"',
            f"distill.capture={tmp_path / 'teacher'}",
            f"data.train=[{', '.join(names)}]",
            f'data.validation=["{files}/plain.parquet"]',
            "data.batch_concepts=60",
            "data.wrap=16",
            "train.warmup=0",
            *SMALLER[architecture],
            *changes,
            architecture=architecture,
        )
        return Lesson(recipe, CPU)

    return make


def live(made: Lesson) -> TaughtData:
    """Return the data of a lesson with the noise of a capture, but without outputs."""
    draws = made.options.draws
    return TaughtData(made.data, made.config, made._noise(made.recipe.train.seed), None, draws)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("store", ["float16", "int8"])
@pytest.mark.parametrize("architecture", ["base", "two_tower"])
def test_outputs_are_those_of_the_live_teacher(lesson, architecture, store):
    """Training packs documents that were captured one per row; a second data set has sources."""
    named = (f"distill.capture_store={store}", "data.packing=true")
    made = lesson(*named, architecture=architecture, data="plain, pairs")
    made.capture()
    captured, teacher = made._taught(), made.teacher.eval()
    teaching = Teaching(made.model(), teacher, made.options)
    [recorder] = teaching._teacher_recorders
    near = 4 * rounding(additions(teacher))
    for number in range(made.data.batches_per_epoch):
        batch = captured.batch(number)
        with torch.no_grad(), recorder.active():
            teacher.loss(batch, **shared_draws(teacher, batch))
        expected_ND = predicted(teacher, batch, recorder.output)
        learned_BS = batch.learned(first=architecture == "base")
        found_ND = batch.columns[OUTPUTS][learned_BS].float()
        assert found_ND.abs().sum() > 0 and not batch.columns[OUTPUTS][~learned_BS].any()
        largest_N1 = expected_ND.abs().amax(dim=-1, keepdim=True)
        # Half a step of int8, whose scale is float16, or half a unit in the last place of float16.
        step = 0.5 / 127 + 2.0**-11 if store == "int8" else 2.0**-11
        assert ((found_ND - expected_ND).abs() <= (step + near) * largest_N1).all()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SMALLER)
def test_a_captured_teacher_is_worth_a_live_one(lesson, architecture):
    draws = () if architecture in ("base", "sonar_llm") else ("distill.draws=2",)
    made = lesson(*draws, "data.packing=true", architecture=architecture, data="plain, pairs")
    made.capture()
    captured, online = made.student(), with_live_teacher(made)
    assert captured.teaching._teacher == []
    for _ in range(2 * made.data.batches_per_epoch + 1):
        left, right = captured.train_step(), online.train_step()
        assert left["own"] == pytest.approx(right["own"], rel=1e-4)
        assert left["prediction"] == pytest.approx(right["prediction"], rel=1e-3)


def with_live_teacher(made: Lesson) -> distill.DistillTrainer:
    """Return a trainer with a live teacher that gets the noise of the capture."""
    model = made.model()
    teaching = Teaching(model, made.teacher, made.options)
    return distill.DistillTrainer(model, live(made), made.recipe.train, teaching=teaching)


@pytest.mark.parametrize("dropping", ["bernoulli", "official"])
def test_noise_is_that_of_the_document(lesson, dropping):
    changes = (
        "distill.draws=2",
        f"model.objective.dropping={dropping}",
        "model.objective.condition_dropping=0.5",
    )
    made = lesson(*changes, architecture="two_tower")
    others = ("data.packing=true", "data.readers=1", "data.batch_concepts=90")
    packed = lesson(*changes, *others, architecture="two_tower")

    def seen(made: Lesson, epoch: int) -> dict[bytes, list[torch.Tensor]]:
        data, found = live(made), {}
        steps = [n for n in range(200) if made.data.epoch(n) == epoch]
        for batch in map(data.batch, steps):
            assert given_draws(batch).noise_BSD.shape == batch.concepts_BSD.shape
            columns = [batch.columns[name] for name in ("noise", "timesteps", "dropped")]
            for place in places(batch, made.config):
                found[place.key] = [column[place.where].clone() for column in columns]
        return found

    first, second, third = (seen(made, epoch) for epoch in range(3))
    assert len(first) == DOCUMENTS + 1  # one of them in two pieces
    for other in (third, seen(packed, 0)):
        assert first.keys() == other.keys()
        for key, parts in first.items():
            assert all(map(torch.equal, parts, other[key]))
    for key, (noise, *_) in first.items():
        assert not torch.equal(noise, second[key][0])
    noise, timesteps, dropped = (
        torch.cat([parts[n] for parts in [*first.values(), *second.values()]]) for n in range(3)
    )
    assert noise.mean().abs() < 0.05 and abs(noise.std() - 1) < 0.05
    assert len(timesteps.unique()) > 60 and 0.3 < dropped.float().mean() < 0.6
    batch = made.data.batch(0)
    other = DocumentDraws(made.config, 1).columns(batch, places(batch, made.config), 0)
    assert not torch.equal(other["noise"], live(made).batch(0).columns["noise"])


def test_shares_make_the_same_capture_and_a_run_needs_them_all(lesson, tmp_path):
    made, folder = lesson("distill.draws=2", architecture="one_tower"), tmp_path / "teacher"
    with pytest.raises(NotFoundError, match="no captured predictions"):
        made.student()
    assert made.capture(Share(1, 3)) == Captured(9, 3, 5)
    with pytest.raises(IntegrityError, match=r"lacks 5 of the 8 shards .* number 0") as caught:
        made.student()
    assert "--capture" in caught.value.hint
    kept = content(folder)
    assert len(kept) == 1 + 3
    old, new = folder / ".shard.old.part", folder / ".shard.new.part"  # of killed processes
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    made.capture(Share(0, 3))
    assert not old.exists() and new.exists()
    new.unlink()
    assert made.capture(Share(2, 3)) == Captured(DOCUMENTS + 1, SHARDS, 0)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert made.capture() == Captured(DOCUMENTS + 1, SHARDS, 0)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    in_shares = content(folder)
    assert kept.items() <= in_shares.items()
    made.capture(force=True)
    assert content(folder) == in_shares
    made.student()


def test_a_short_run_needs_only_its_row_groups(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr("lcm_cli.training.data.batches.BUFFER_BYTES", 1000)
    monkeypatch.setattr("lcm_cli.training.data.batches.BUFFER_BATCHES", 1)
    made = lesson("train.steps=1", "data.readers=1")
    assert made.capture().missing == 0
    some = len(content(tmp_path / "teacher")) - 1
    assert 0 < some < SHARDS
    made.student().train_step()
    longer = lesson("data.readers=1")
    with pytest.raises(IntegrityError, match=f"lacks {SHARDS - some} of the {SHARDS} shards"):
        longer.student()
    assert longer.capture() == Captured(DOCUMENTS + 1, SHARDS, 0)
    longer.student()
    other = lesson("train.seed=5", "data.batch_concepts=100", "data.packing=true")
    other.student()  # shards depend neither on the order of the data nor on batches


def test_captures_of_others_are_refused(lesson, files, tmp_path):
    folder, kind = tmp_path / "teacher", "two_tower"
    made = lesson(architecture=kind)
    made.capture()
    for change, words in (
        ("data.wrap=12", "a different data set"),
        ("data.min_sentences=3", "a different data set"),
        ("model.objective.condition_dropping=0.3", "a different noise setting"),
        ("distill.draws=2", "1 draw per document"),
    ):
        other = lesson(change, architecture=kind)
        with pytest.raises(IntegrityError, match=words) as caught:
            other.student()
        assert "--capture" in caught.value.hint
        with pytest.raises(UsageError, match="with a different"):
            other.capture()
    lesson("train.seed=3", architecture=kind).student()  # the noise is that of the capture
    model = load_model(files / kind, device="cpu")
    model.denoiser.final_proj.fc.bias.data += 1
    save(model, tmp_path / "other")
    other = lesson(f'distill.teacher="{tmp_path / "other"}"', architecture=kind)
    with pytest.raises(IntegrityError, match="a different teacher"):
        other.student()
    before = set(content(folder))
    other.capture(force=True)
    assert set(content(folder)) & before == {"capture.json"}
    other.student()


def test_damaged_captures_are_refused(lesson, tmp_path):
    folder, made = tmp_path / "teacher", lesson()
    made.capture()
    path = sorted(folder.glob("*.safetensors"))[2]
    whole = path.read_bytes()
    for text in (b"", whole[:-10], whole[:40]):
        path.write_bytes(text)
        with pytest.raises(IntegrityError, match="damaged"):
            made.student()
    path.unlink()
    made.capture()
    assert path.read_bytes() == whole
    student = made.student()
    with pytest.raises(IntegrityError, match="lacks a document"):
        batch = made.data.batch(0)
        student.data.taught(replace(batch, concepts_BSD=batch.concepts_BSD.flip(2)), 0)
    (folder / "capture.json").write_text('{"version": 2}')
    for act in (made.student, made.capture):
        with pytest.raises(IntegrityError, match="version"):
            act()
    made.capture(force=True)
    made.student()


def test_folders_of_other_things(lesson, tmp_path):
    made, folder = lesson(), tmp_path / "teacher"
    folder.write_bytes(b"PAR1")
    for act in (made.student, made.capture):
        with pytest.raises(UsageError, match="is a file") as caught:
            act()
        assert "--capture" in caught.value.hint
    folder.unlink()
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        made.capture(force=True)
    with pytest.raises(UsageError, match="names no folder"):
        lesson('distill.capture=""').capture()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("distill.draws=0", "at least 1"),
        ("distill.draws=2", "base model has one prediction"),
        ("distill.capture_store=int4", "capture_store"),
        ("distill.hidden=1.0", "not hidden states"),
    ],
)
def test_bad_options(lesson, change, words):
    with pytest.raises(LcmError, match=words):
        lesson(change)
    with pytest.raises(IntegrityError, match=r"no effect without distill\.capture"):
        lesson('distill.capture=""', "distill.draws=2", architecture="two_tower")


# A shard per row group.
MAIN = """
import os
from lcm_cli.app import main
from lcm_cli.training.distillation import distill
distill.SHARD_BYTES = 600
os._exit(main())
"""


@pytest.fixture
def command(run, lesson, files, tmp_path) -> Callable[..., int]:
    """Capture in a process; returns its exit code. `expected` is the content of the folder."""
    made = lesson(architecture="two_tower")
    made.capture()
    folder, recipe = tmp_path / "teacher", tmp_path / "micro.toml"
    expected = content(folder)
    shutil.rmtree(folder)
    sets = [
        f'distill.teacher="{files / "two_tower"}"',
        f"distill.capture={folder}",
        f'data.train=["{files}/plain.parquet"]',
        "data.batch_concepts=60",
        "data.wrap=16",
        *SMALLER["two_tower"],
    ]
    arguments = [part for each in sets for part in ("--set", each)]

    def call(*more: str, **options) -> int:
        common = ("distill", recipe, *arguments, "--capture", "--device", "cpu")
        return run(*common, *more, errors=tmp_path / "errors", code=MAIN, **options)

    call.folder, call.expected = folder, expected
    return call


@pytest.mark.slow
def test_a_killed_capture_continues(command):
    folder, expected = command.folder, command.expected
    first = folder / min(expected)
    assert command(seconds=0.001, after=first) == -signal.SIGKILL
    kept = content(folder)
    assert 0 < len(kept) < len(expected) and kept.items() <= expected.items()
    written = first.stat().st_mtime_ns
    assert command() == 0
    assert content(folder) == expected and first.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize("shard", [(), ("--shard", "0/1")])
def test_processes_share_a_capture_or_repeat_it(command, tmp_path, shard):
    assert command(*shard, processes=2) == 0, (tmp_path / "errors").read_text()
    assert content(command.folder) == command.expected and len(command.expected) == 1 + SHARDS


@pytest.mark.slow
def test_a_full_disk_leaves_whole_shards(command, tmp_path):
    smallest, *_, largest = sorted(map(len, command.expected.values()))
    assert command(limit=(smallest + largest) // 2) == 1
    assert "cannot write" in (tmp_path / "errors").read_text()
    found = content(command.folder)
    assert found.items() <= command.expected.items() and len(found) < len(command.expected)
    assert not list(command.folder.glob(".*.part"))
