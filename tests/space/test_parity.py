"""Our runtime against sonar-space's, on small weights: equal up to rounding."""

import random
from importlib.util import find_spec

import pytest
import torch
from rounding import additions, assert_near

from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.kernels import pack_linear
from lcm_cli.space.search import DecodeOptions, search
from lcm_cli.space.sonar_package import import_sonar
from lcm_cli.space.tokenizer import EOS, Tokenizer

if find_spec("sonar") is None:
    pytest.skip("sonar-space is not installed", allow_module_level=True)

LANGUAGES = ("eng_Latn", "jpn_Jpan", "arb_Arab", "fra_Latn")
TEXTS = [
    "Hello there, Tom.",
    "Der Hund läuft über 123 Straßen ☃.",
    "日本語の文章です。猫が好き。",
    "هذه جملة قصيرة.",
    "  spaces   here ",
    "www === … ½ ﬁ",
    "a",
    "",
    "J'ai faim; où est-on ?",
]
DIM, LAYERS, HEADS, FFN = 64, 3, 4, 128


@pytest.fixture(scope="module", autouse=True)
def sonar():
    import_sonar()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Our tokenizer and fairseq2's, on the same small sentencepiece model."""
    import sentencepiece
    from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(folder / "small"),
        vocab_size=150,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path = folder / "small.model"
    config = NllbTokenizerConfig(langs=list(LANGUAGES), default_lang="eng_Latn")
    return Tokenizer(path, LANGUAGES), load_nllb_tokenizer(path, config)


@pytest.fixture(scope="module", params=["random", "peaked"])
def models(request, tokenizers):
    """Our encoder and decoder, and sonar-space's, with equal weights.

    "peaked" weights end sentences at different lengths, as trained ones do.
    """
    from fairseq2.data.tokenizers import VocabularyInfo
    from sonar.models.sonar_text import (
        SonarTextDecoderConfig,
        SonarTextDecoderFactory,
        SonarTextEncoderConfig,
        SonarTextEncoderFactory,
    )

    torch.manual_seed(0)
    size = tokenizers[0].vocabulary
    common = {
        "model_dim": DIM,
        "max_seq_len": 512,
        "vocab_info": VocabularyInfo(size, unk_idx=1, bos_idx=2, eos_idx=3, pad_idx=1),
        "num_encoder_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_encoder_attn_heads": HEADS,
        "num_decoder_attn_heads": HEADS,
        "ffn_inner_dim": FFN,
    }
    switches = {
        "activation_fn": "ReLU",
        "no_scale_embedding": False,
        "no_token_positional_embeddings": False,
        "learned_pos": False,
        "emb_dropout_p": 0.1,
        "attention_dropout_p": 0.1,
        "activation_dropout_p": 0.1,
        "normalize_before": True,
    }
    encoder_config = SonarTextEncoderConfig(**common, pooling="mean", _from_fairseq=True)
    theirs = (
        SonarTextEncoderFactory(encoder_config).create_model().eval(),
        SonarTextDecoderFactory(SonarTextDecoderConfig(**common, **switches)).create_model().eval(),
    )
    for parameter in (p for model in theirs for p in model.parameters()):
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    if request.param == "peaked":
        # A push towards the end token, along one direction of the concept.
        theirs[1].decoder_frontend.embed.weight.data[EOS] *= 3
        theirs[1].decoder_frontend.embed.weight.data[4:] *= 1.5
    ours = (
        TextEncoder(EncoderConfig(LAYERS, DIM, HEADS, FFN, size)),
        TextDecoder(DecoderConfig(LAYERS, DIM, HEADS, FFN, size, DIM)),
    )
    for mine, their in zip(ours, theirs, strict=True):
        assert not mine.load_state_dict(their.state_dict(), strict=False).missing_keys
        mine.requires_grad_(False).eval()
    return ours, theirs


def test_tokenizer_gives_the_same_ids_and_texts(tokenizers):
    ours, theirs = tokenizers
    decoder = theirs.create_decoder(skip_special_tokens=True)
    assert ours.vocabulary == theirs.vocab_info.size
    for lang in LANGUAGES:
        encoder = theirs.create_encoder(lang=lang, mode="source")
        for text, row in zip(TEXTS, ours.encode(TEXTS, lang), strict=True):
            assert row == encoder(text).tolist()
            assert ours.decode([row[1:]]) == [decoder(torch.tensor(row[1:]))]


def test_encoder(models, tokenizers):
    from sonar.inference_pipelines.text import TextToEmbeddingModelPipeline

    (encoder, _), (their_encoder, _) = models
    expected = TextToEmbeddingModelPipeline(their_encoder, tokenizers[1]).predict(
        TEXTS, source_lang="jpn_Jpan"
    )
    found = encoder(tokenizers[0].encode(TEXTS, "jpn_Jpan"))
    assert_near(found, expected, additions(encoder))


def test_a_row_does_not_depend_on_its_batch(models, tokenizers):
    encoder = models[0][0]
    rows = tokenizers[0].encode(TEXTS, "eng_Latn")
    together = encoder(rows)
    for row, concept in zip(rows, together, strict=True):
        assert_near(encoder([row])[0], concept, additions(encoder))


def test_decoder_logits(models, tokenizers):
    from fairseq2.nn import BatchLayout

    (_, decoder), (_, their_decoder) = models
    rng = random.Random(0)
    size = decoder.config.vocabulary
    rows = [[EOS, *(rng.randrange(4, size) for _ in range(11))] for _ in range(6)]
    concepts = torch.randn(6, DIM)
    ids, seqs = torch.tensor(rows), concepts[:, None]
    hidden = their_decoder.decode(ids, BatchLayout.of(ids), seqs, BatchLayout.of(seqs))
    expected = their_decoder.project(hidden)
    found = decoder.project(decoder(concepts, rows)).view(6, 12, size)
    assert_near(found, expected, additions(decoder))


@pytest.mark.slow
@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("max_tokens", [4, 40])
@pytest.mark.parametrize("packed", [False, True])
def test_search_finds_the_same_texts(models, tokenizers, beam, max_tokens, packed):
    from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline

    (_, decoder), (_, their_decoder) = models
    concepts = 2 * torch.randn(24, DIM, generator=torch.Generator().manual_seed(1))
    pipeline = EmbeddingToTextModelPipeline(their_decoder, tokenizers[1])
    expected = pipeline.predict(
        concepts, target_lang="fra_Latn", beam_size=beam, max_seq_len=max_tokens + 2
    )
    if packed:
        fresh = TextDecoder(decoder.config)
        fresh.load_state_dict(decoder.state_dict())
        decoder = pack_linear(fresh.requires_grad_(False).eval())
    languages = [tokenizers[0].language("fra_Latn")] * len(concepts)
    limits = [max_tokens] * len(concepts)
    found = search(decoder, concepts, languages, limits, DecodeOptions(beam=beam))
    assert tokenizers[0].decode([hypotheses[0].ids for hypotheses in found]) == expected


@pytest.mark.parametrize("models", ["peaked"], indirect=True)
def test_peaked_weights_end_at_different_lengths(models, tokenizers):
    """With sentences of one length, the test above would prove less."""
    concepts = 2 * torch.randn(24, DIM, generator=torch.Generator().manual_seed(1))
    languages = [tokenizers[0].language("fra_Latn")] * len(concepts)
    found = search(models[0][1], concepts, languages, [40] * 24, DecodeOptions(beam=5))
    assert len({len(hypotheses[0].ids) for hypotheses in found}) > 1
