"""A small random sequence-to-sequence model as a baseline."""

import pytest
import torch
from huggingface_hub.utils import reset_sessions

from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.named_systems import load_systems
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Settings
from lcm_cli.space import load_space

transformers = pytest.importorskip("transformers")

WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "eng_Latn",
    "deu_Latn",
    *["the", "cat", "sleeps", ".", "it", "is", "late"],
]
EXAMPLE = Example(1, "a", "eng_Latn", ("the cat sleeps", "it is late"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("t5")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(
        path
    )
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=len(WORDS), **sizes, decoder_start_token_id=0, eos_token_id=1
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight.mul_(3)  # otherwise it hardly writes anything
    model.save_pretrained(path)
    return path


def test_it_summarizes_in_the_language_of_the_text_and_through_the_space_in_others(folder):
    space = load_space("tiny", device="cpu")
    (system,) = load_systems([f"hf:{folder}"], space, Settings())
    shared = SharedSpace(space)
    (own,) = system.write([EXAMPLE], "", "summarize", shared)
    assert own.sentences and own.cited is None
    assert own == system.write([EXAMPLE], "eng_Latn", "summarize", shared)[0]
    (other,) = system.write([EXAMPLE], "deu_Latn", "summarize", shared)
    assert len(other.sentences) == len(own.sentences) and other != own


def test_it_translates_between_languages_that_it_knows(folder):
    space = load_space("tiny", device="cpu")
    (system,) = load_systems([f"hf:{folder}"], space, Settings())
    (said,) = system.write([EXAMPLE], "deu_Latn", "translate", SharedSpace(space))
    assert len(said.sentences) == 2 and said.cited == (0, 1)
    with pytest.raises(UsageError, match="fra_Latn"):
        system.write([EXAMPLE], "fra_Latn", "translate", SharedSpace(space))


@pytest.fixture
def no_network(monkeypatch):
    # huggingface_hub reads the environment once, when it is imported, and keeps its sessions.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reset_sessions()
    yield
    reset_sessions()


def test_missing_model(no_network):
    space = load_space("tiny", device="cpu")
    (system,) = load_systems(["hf:no/such"], space, Settings())
    with pytest.raises(NotFoundError, match="cannot load no/such"):
        system.write([EXAMPLE], "", "summarize", SharedSpace(space))
