"""The installation and use of SONAR at full size, with random weights in the official format.

The files have 24 + 24 layers and 256,206 ids and lie where fairseq2 puts its downloads.
`lcm pull sonar` builds the space from them offline; encoding and decoding must give the same
results as sonar-space.
"""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from rounding import additions, assert_near

from lcm_cli.hub import cards, locate
from lcm_cli.space import DecodeOptions, load_space
from lcm_cli.space import sonar_package as bridge
from lcm_cli.text.languages import SONAR
from lcm_cli.transfer.converters.sonar import tensor_shapes
from lcm_cli.transfer.pull import pull
from lcm_cli.transfer.resolve import resolve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("sonar") is None, reason="sonar-space is not installed"),
]

FOLDERS = {  # in fairseq2's cache, which derives them from the URLs in sonar-space's cards
    "encoder": "43e937cce6a6a5cd5730cf66/sonar_text_encoder.pt",
    "decoder": "dd6b263a791ecff9b7dd5bff/sonar_text_decoder.pt",
    "tokenizer": "538cc2c5593d2eec13df5a8f/sentencepiece.source.256000.model",
}
TEXTS = ["the cat sleeps", "die Katze schläft und ein Hund", "猫 が 眠る", "a dog"]
GIGABYTE = 1_000_000_000


@pytest.fixture
def downloads(monkeypatch):
    """Official files at full size, deleted when the test ends, even if it fails."""
    folder = Path(tempfile.mkdtemp(prefix="lcm-full-size-"))
    if shutil.disk_usage(folder).free < 15 * GIGABYTE:
        pytest.skip("needs 15 GB of disk")
    monkeypatch.setenv("FAIRSEQ2_CACHE_DIR", str(folder / "fairseq2"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    paths = {role: folder / "fairseq2" / name for role, name in FOLDERS.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True)
    try:
        pool = torch.empty(256_206 * 1024)
        pool.normal_(0, 0.03, generator=torch.Generator().manual_seed(0))
        for role in ("encoder", "decoder"):
            save_random(role, paths[role], pool)
        del pool
        make_tokenizer(paths["tokenizer"])
        yield paths
    finally:
        shutil.rmtree(folder)


def save_random(role: str, path: Path, pool: torch.Tensor) -> None:
    """Write weights of the official shapes, cut from `pool`, since drawing all takes a minute."""
    state: dict[str, torch.Tensor] = {}
    start = 0
    for name, shape in tensor_shapes(role, getattr(cards.card("sonar"), role)).items():
        size = torch.Size(shape).numel()
        start = (start + 1_000_003) % (len(pool) - size + 1)
        tensor = pool[start : start + size].view(shape)
        # torch.save stores views of one tensor once: a file of full size needs copies.
        state[name] = tensor + 1 if "norm.weight" in name else tensor.clone()
    if role == "decoder":
        state["final_proj.weight"] = state["decoder_frontend.embed.weight"]
    torch.save({"model": state}, path)


def make_tokenizer(path: Path) -> None:
    """Train a small sentencepiece model and pad it to the official 256,000 pieces."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 9), model_prefix=str(path.with_suffix("")), vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path.with_suffix(".vocab").unlink()
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    for number in range(len(model.pieces), 256_000):
        model.pieces.add(piece=f"▁unused{number}", score=-100.0)
    path.write_bytes(model.SerializeToString())


def own_memory() -> int:
    """Return this process's resident memory that is not backed by a file, in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def theirs(sonar_text, role: str, path: Path) -> torch.nn.Module:
    """Load weights, memory-mapped, into sonar-space's model by its own config and converter."""
    from fairseq2.data.tokenizers import VocabularyInfo

    fields = {
        "model_dim": 1024,
        "max_seq_len": 512,
        "vocab_info": VocabularyInfo(256_206, unk_idx=1, bos_idx=2, eos_idx=3, pad_idx=1),
        "num_encoder_layers": 24,
        "num_decoder_layers": 24,
        "num_encoder_attn_heads": 16,
        "num_decoder_attn_heads": 16,
        "ffn_inner_dim": 8192,
    }
    if role == "encoder":
        config = sonar_text.SonarTextEncoderConfig(**fields, pooling="mean", _from_fairseq=True)
        factory, convert = (
            sonar_text.SonarTextEncoderFactory,
            sonar_text._convert_sonar_text_encoder_checkpoint,
        )
    else:
        flags = ("no_scale_embedding", "no_token_positional_embeddings", "learned_pos")
        rates = ("emb_dropout_p", "attention_dropout_p", "activation_dropout_p")
        fields |= dict.fromkeys(flags, False) | dict.fromkeys(rates, 0.1)
        config = sonar_text.SonarTextDecoderConfig(
            **fields, activation_fn="ReLU", normalize_before=True
        )
        factory, convert = (
            sonar_text.SonarTextDecoderFactory,
            sonar_text._convert_sonar_text_decoder_checkpoint,
        )
    with torch.device("meta"):
        model = factory(config).create_model()
    state = convert(torch.load(path, weights_only=True, mmap=True), config)
    model.load_state_dict(state, strict=True, assign=True)
    for module in model.modules():  # fill the position tables, still without content
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty_like(buffer, device="cpu"), persistent=False)
            module.reset_non_persistent_buffers()
    return model.eval()


def test_official_route_at_full_size(downloads):
    plan = resolve("sonar").plan()
    assert [part.here for part in plan.parts] == list(downloads.values())
    before = own_memory()
    files = locate.read_space(pull(plan, accept_licence=True).path)
    assert own_memory() - before < GIGABYTE / 2
    assert files.config["languages"] == list(SONAR)
    assert files.encoder.stat().st_size > 3 * GIGABYTE

    bridge.import_sonar()
    from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer
    from sonar.models import sonar_text

    settings = NllbTokenizerConfig(langs=list(SONAR), default_lang="eng_Latn")
    tokenizer = load_nllb_tokenizer(downloads["tokenizer"], settings)
    concepts = encode_as_sonar_space(sonar_text, tokenizer, downloads["encoder"])
    decode_as_sonar_space(sonar_text, tokenizer, downloads["decoder"], concepts)


def encode_as_sonar_space(sonar_text, tokenizer, weights: Path) -> torch.Tensor:
    from sonar.inference_pipelines.text import TextToEmbeddingModelPipeline

    before = own_memory()
    space = load_space("sonar", precision="float32", device="cpu")
    found = space.encode(TEXTS, "jpn_Jpan")
    # Only the packed linear layers are in memory; the embedding, a third of the weights, is mapped.
    config = space.encoder.config
    maps = config.layers * (4 * config.model_dim**2 + 2 * config.model_dim * config.ffn_dim)
    assert own_memory() - before < 4 * maps + GIGABYTE / 4
    terms = additions(space.encoder)
    del space
    encoder = theirs(sonar_text, "encoder", weights)
    expected = TextToEmbeddingModelPipeline(encoder, tokenizer).predict(TEXTS, "jpn_Jpan")
    assert_near(found.concepts, expected, terms)
    return expected


def decode_as_sonar_space(sonar_text, tokenizer, weights: Path, concepts: torch.Tensor) -> None:
    from sonar.inference_pipelines.text import EmbeddingToTextModelPipeline

    space = load_space("sonar", precision="float32", device="cpu")
    limits = [8] * len(concepts)
    found = space.decode(concepts.numpy(), ["fra_Latn"], DecodeOptions(beam=5), limits=limits)
    del space
    decoder = theirs(sonar_text, "decoder", weights)
    texts = EmbeddingToTextModelPipeline(decoder, tokenizer).predict(
        concepts, target_lang="fra_Latn", beam_size=5, max_seq_len=10
    )
    assert [best[0].text for best in found["fra_Latn"]] == texts
    assert len(set(texts)) > 1
