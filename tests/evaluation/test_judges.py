"""Judges with small random models, made here, in the layout of the real ones."""

import math

import numpy as np
import pytest
import torch

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.evaluation.judges import Blaser, LanguageModel, greedy_f1, load_judges
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.space import load_space

transformers = pytest.importorskip("transformers")

KNOWN = "the cat dog sleeps runs premise hypothesis 1 0 a . : it is late"
WORDS = [*KNOWN.split(), "\n"]
ENGLISH = {
    "lang": "eng_Latn",
    "to": "eng_Latn",
    "source": ["The cat sleeps.", "It is late."],
    "prediction": ["the cat sleeps", "it is late"],
    "target": ["the dog sleeps"],
}
GERMAN = ENGLISH | {"lang": "deu_Latn", "to": "deu_Latn"}
EMPTY = ENGLISH | {"prediction": []}


@pytest.fixture(scope="module")
def space():
    return SharedSpace(load_space("tiny", device="cpu"))


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model with a tokenizer of a few words in a folder."""

    def saved(model):
        from tokenizers import Tokenizer, models, pre_tokenizers

        special = ["<unk>", "<pad>", "</s>"]
        vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        splits = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
        )
        fast.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        return tmp_path

    torch.manual_seed(0)
    return saved


SIZES = {"vocab_size": len(WORDS) + 3, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}


def judge(name, folder, space):
    (made,) = load_judges([f"{name}={folder}"], space).values()
    return made


def gpt2(save):
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 3, n_embd=16, n_layer=2, n_head=2, n_positions=24
    )
    return save(transformers.GPT2LMHeadModel(config))


def test_cola_is_the_mean_probability_of_class_0(save, space):
    config = transformers.RobertaConfig(**SIZES, num_labels=2)
    model = transformers.RobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(50)
    cola = judge("cola", save(model), space)
    first, german, nothing = cola.score([ENGLISH, GERMAN, EMPTY])
    alone = [cola.score([ENGLISH | {"prediction": [s]}])[0] for s in ENGLISH["prediction"]]
    assert first == pytest.approx(sum(alone) / 2, abs=1e-5) and alone[0] != alone[1]
    assert math.isnan(german) and math.isnan(nothing)
    ids = cola.tokenizer("the cat sleeps", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert alone[0] == pytest.approx(float(model(ids).logits.softmax(-1)[0, 0]), abs=1e-5)


def test_seahorse_is_the_probability_of_the_token_1(save, space):
    config = transformers.T5Config(
        vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    seahorse = judge("seahorse-q4", save(model), space)
    both = seahorse.score([ENGLISH, GERMAN | {"prediction": ["it is late"]}])
    assert all(0 < score < 1 for score in both) and both[0] != both[1]
    text = "premise: The cat sleeps. It is late. hypothesis: the cat sleeps it is late"
    ids = seahorse.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(ids, decoder_input_ids=torch.tensor([[1]])).logits[0, 0]
    one = 3 + WORDS.index("1")
    assert both[0] == pytest.approx(float(logits.softmax(-1)[one]), abs=1e-5)


def test_momentum_reads_the_encoder_and_the_linear_layer_from_the_weights(save, space):
    config = transformers.XLNetConfig(
        vocab_size=len(WORDS) + 3, d_model=16, n_layer=1, n_head=2, d_inner=32
    )
    encoder, line = transformers.XLNetModel(config).eval(), torch.nn.Linear(16, 1)
    folder = save(encoder)
    (folder / "model.safetensors").unlink()
    state = {f"main_encoder.{k}": v for k, v in encoder.state_dict().items()}
    torch.save(state | {f"conlinear.{k}": v for k, v in line.state_dict().items()},
               folder / "pytorch_model.bin")  # fmt: skip
    momentum = judge("momentum", folder, space)
    ids = momentum.tokenizer("the cat sleeps it is late", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        raw = float(line(encoder(ids).last_hidden_state[:, -1]))
    assert momentum.score([ENGLISH])[0] == pytest.approx(1 / (1 + math.exp(-raw / 3)), abs=1e-5)
    sentences = [f"the {i}" for i in range(21)]
    assert [len(w) for w in momentum._windows(sentences)] == [10, 10, 10, 6]
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LcmError, match="main_encoder"):
        judge("momentum", folder, space).score([ENGLISH])


def test_perplexity_and_mi_are_sums_of_log_probabilities(save, space):
    folder = gpt2(save)
    lm = LanguageModel(str(folder), "cpu")
    ids = [3 + WORDS.index(word) for word in ("the", "cat", "sleeps")]
    with torch.inference_mode():
        chances = lm.network(torch.tensor([ids])).logits[0].log_softmax(-1)
    both = float(chances[0, ids[1]] + chances[1, ids[2]])
    assert lm.log_probability("", "the cat sleeps") == (pytest.approx(both, abs=1e-5), 2)
    after = lm.log_probability("the", "cat sleeps")
    assert after == (pytest.approx(both, abs=1e-5), 2)
    assert lm.log_probability("", "the") == (0.0, 0)
    # A context that is too long loses its beginning; the text itself is scored completely.
    assert lm.log_probability("the " * 40, "cat sleeps")[1] == 2
    found = judge("perplexity", folder, space).score([ENGLISH, GERMAN])
    assert found[0] > 1 and math.isnan(found[1])


def test_mi_of_a_model_without_context_is_zero(save):
    folder = gpt2(save)
    lm = LanguageModel(str(folder), "cpu")
    text, said = ["the cat", "it is late", "a dog runs"], ["it is", "a dog"]
    assert lm.mutual_information(text, said) != 0
    with torch.no_grad():  # without positions and attention only the last token counts
        lm.network.transformer.wpe.weight.zero_()
        for block in lm.network.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
    assert lm.mutual_information(text, said) == pytest.approx(0, abs=1e-5)


def test_bertscore_is_the_f1_of_the_largest_cosines(save, space):
    said, wanted = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[2.0, 0]])
    # Precision: the mean of 1 and 0; recall 1.
    assert greedy_f1(said, wanted) == pytest.approx(2 * 0.5 / 1.5)
    bert = judge("bertscore", save(transformers.BertModel(transformers.BertConfig(**SIZES))), space)
    same = ENGLISH | {"target": ENGLISH["prediction"]}
    scores = bert.score([same, ENGLISH, ENGLISH | {"target": []}])
    assert scores[0] == pytest.approx(1, abs=1e-5) and scores[1] < 1 and math.isnan(scores[2])


def test_blaser_compares_concepts_sentence_by_sentence(space, monkeypatch):
    model = pytest.importorskip("sonar.models.blaser.model")
    torch.manual_seed(0)
    sizes = {"embedding_dim": space.dim, "output_dim": 1, "hidden_dims": [8], "dropout": 0.0}
    sizes |= {"activation": "TANH", "norm_emb": True, "output_act": False}
    network = model.BlaserModel(**sizes, input_form="QE").eval()
    monkeypatch.setattr("sonar.models.blaser.loader.load_blaser_model", lambda name: network)
    blaser = Blaser("small", space, with_reference=False)
    rows = [
        torch.from_numpy(space.concepts(ENGLISH[k], "eng_Latn")) for k in ("source", "prediction")
    ]
    with torch.inference_mode():
        wanted = float(network(*rows).mean())
    assert blaser.score([ENGLISH])[0] == pytest.approx(wanted, abs=1e-5)
    assert not np.isnan(blaser.score([ENGLISH | {"prediction": ["the cat"]}])[0])
    with_reference = Blaser("small", space, with_reference=True)
    assert math.isnan(with_reference.score([ENGLISH | {"target": []}])[0])


def test_unknown_judges_and_missing_models(space, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="no judge") as caught:
        load_judges(["seahorse_q9"], space)
    assert "did you mean" in caught.value.hint
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="cannot load") as caught:
        judge("cola", tmp_path / "nothing", space).score([ENGLISH])
    assert "go online" in caught.value.hint
