"""MI in evaluations during training: its value, where it appears, and missing judges."""

import sys
from pathlib import Path

import pytest
import torch

from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.evaluation.next_concept import mutual_information
from lcm_cli.models.interface import Batch, Noise
from lcm_cli.training.curves import read_curves
from lcm_cli.training.loop import Run
from lcm_cli.training.parallel import World
from lcm_cli.training.prepare import make_sampler

from .conftest import Memory

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with random weights and one token per letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("gpt2")
    letters = {letter: i for i, letter in enumerate(["<unk>", *map(chr, range(10, 127))])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(len(letters), n_embd=16, n_layer=1, n_head=2, n_positions=512)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_evaluations_have_it_and_the_log_shows_it(start, judge, tmp_path):
    from lcm_cli.commands._training import line

    trainer = start(tmp_path, f'train.judge="{judge}"', "train.steps=4", "train.eval_every=2")
    records = []
    assert Run(trainer, tmp_path, report=records.append).train()
    found = [record["eval"]["mi"] for record in records if "eval" in record]
    assert len(found) == 2 and read_curves(tmp_path)["eval.mi"] == ([2, 4], found)
    assert f", mi {found[-1]:.4g}" in line(records[-1])


@pytest.mark.parametrize("source", [None, 3])
def test_it_is_that_of_the_predictions(start, judge, tmp_path, source):
    """MI covers all predictions, weighted by tokens; of pairs, only those after the source."""
    trainer = start(tmp_path, f'train.judge="{judge}"')
    model, sampler = trainer.model.eval(), trainer.sampler
    documents = [Memory(length=14).stops_SD.repeat(2, 1)[:length] for length in (5, 12)]
    batch = Batch.of(documents, None if source is None else [source] * 2)
    scores = []
    for document_SD in documents:
        first = source or 1
        most = slice(first - 1, first + 7)  # not all of the longer one
        predicted_SD = model.predict(Batch.of([document_SD]), model.Options(), Noise([0]))[0, most]
        texts, said = sampler.text(document_SD), sampler.text(predicted_SD)
        for n, sentence in enumerate(said, first):
            after, count = sampler.lm.log_probability(" ".join(texts[:n]) + "\n", sentence)
            scores.append((after, sampler.lm.log_probability("\n", sentence)[0], count))
    expected = mutual_information(*zip(*scores, strict=True))
    found = sampler.mutual_information(model, [batch], 0)
    assert found == pytest.approx(expected, rel=1e-3) and abs(found) > 1e-4


def test_nothing_to_predict_is_no_score(start, judge, tmp_path):
    trainer = start(tmp_path, f'train.judge="{judge}"')
    alone = Batch.of([torch.zeros(1, 32)])
    assert trainer._mutual_information(trainer.model, [alone]) == {}


def test_without_a_judge_there_is_none(start, tmp_path):
    assert "mi" not in start(tmp_path).evaluate(tmp_path)["eval"]


def test_only_the_leading_process_has_one(start, judge, tmp_path, model_recipe):
    sampler = start(tmp_path).sampler
    recipe = model_recipe(f'train.judge="{judge}"')
    config = recipe.config({})
    assert make_sampler(recipe, sampler.space, config, World(1, 2)).lm is None
    assert make_sampler(recipe, sampler.space, config, World(0, 2)).lm is not None


def test_a_judge_that_is_not_there(start, tmp_path):
    with pytest.raises(NotFoundError, match=r"train\.judge: cannot load .*nowhere") as caught:
        start(tmp_path, f'train.judge="{tmp_path / "nowhere"}"')
    assert "--set train.judge=" in caught.value.hint


def test_without_transformers(start, tmp_path, judge, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="needs the package transformers") as caught:
        start(tmp_path, f'train.judge="{judge}"')
    assert "lcm-cli[judges]" in caught.value.hint and "train.judge=" in caught.value.hint
