"""Speech encoders against sonar-space's, on random weights: equal up to rounding.

The official files are in fairseq's layout: here sonar-space's network is written under fairseq's
names, and read by both programs.
"""

import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from lcm_cli.errors import IntegrityError
from lcm_cli.space.sonar_package import import_sonar
from lcm_cli.speech import load_speech_encoder
from lcm_cli.speech.config import SpeechConfig, SpeechShapes
from lcm_cli.speech.features import log_mel
from lcm_cli.speech.speech import write
from lcm_cli.transfer.converters.speech import read_speech

if find_spec("sonar") is None:
    pytest.skip("sonar-space is not installed", allow_module_level=True)

SMALL = SpeechShapes(3, 64, 4, 128, 7, 2, 4, 96, 64)
FULL = SpeechShapes(24, 1024, 16, 4096, 31, 3, 16, 4096, 1024)
FAIRSEQ = (  # from fairseq2's names
    (r"^encoder_frontend\.post_extract_layer_norm\.", "encoder.w2v_model.layer_norm."),
    (r"^encoder_frontend\.model_dim_proj\.", "encoder.w2v_model.post_extract_proj."),
    (r"^layer_norm\.", "encoder.w2v_model.encoder.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.final_layer_norm."),
    (r"^encoder\.layers\.", "encoder.w2v_model.encoder.layers."),
    (r"\.conv_layer_norm\.", ".conv_module.layer_norm."),
    (r"\.conv\.", ".conv_module."),
    (r"\.ffn([12])_layer_norm\.", r".ffn\1.layer_norm."),
    (r"(\.ffn[12])\.inner_proj\.", r"\1.w_1."),
    (r"(\.ffn[12])\.output_proj\.", r"\1.w_2."),
    (r"^(encoder\..*\.self_attn)\.([qkv])_proj\.", r"\1.linear_\2."),
    (r"^(encoder\..*\.self_attn)\.output_proj\.", r"\1.linear_out."),
    (r"\.sdpa\.r_proj\.", ".linear_pos."),
    (r"\.sdpa\.([uv])_bias$", r".pos_bias_\1"),
    (r"^encoder_pooler\.decoder_frontend\.embed\.", "decoder.embed_tokens."),
    (r"^encoder_pooler\.projection_out\.weight", "decoder.embed_out"),
    (r"^encoder_pooler\.decoder\.", "decoder."),
    (r"^(decoder\..*)\.ffn_layer_norm\.", r"\1.final_layer_norm."),
    (r"\.encoder_decoder_attn", ".encoder_attn"),
    (r"^(decoder\..*_attn)\.output_proj\.", r"\1.out_proj."),
    (r"^(decoder\..*)\.ffn\.inner_proj\.", r"\1.fc1."),
    (r"^(decoder\..*)\.ffn\.output_proj\.", r"\1.fc2."),
)


@pytest.fixture(scope="module", autouse=True)
def sonar():
    import_sonar()


def sonar_network(shapes):
    """Return sonar-space's network of these shapes with random weights, and its config."""
    from fairseq2.models.transformer import TransformerNormOrder
    from fairseq2.models.w2vbert import W2VBertConfig
    from sonar.models.sonar_speech import SonarSpeechEncoderConfig, SonarSpeechEncoderFactory

    inner = W2VBertConfig().w2v2_config.encoder_config
    inner.model_dim, inner.num_encoder_layers = shapes.model_dim, shapes.layers
    inner.num_encoder_attn_heads, inner.ffn_inner_dim = shapes.heads, shapes.ffn_dim
    inner.depthwise_conv_kernel_size = shapes.kernel
    config = SonarSpeechEncoderConfig(
        w2v2_encoder_config=inner, final_dropout_p=0.1, model_dim=shapes.model_dim,
        max_seq_len=1024, pad_idx=1, bos_idx=2, num_decoder_layers=shapes.pool_layers,
        num_decoder_attn_heads=shapes.pool_heads, decoder_norm_order=TransformerNormOrder.POST,
        ffn_inner_dim=shapes.pool_ffn_dim, dropout_p=0.1,
    )  # fmt: skip
    network = SonarSpeechEncoderFactory(config).create_model().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("norm.weight") or name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                width = tensor[0].numel() if tensor.ndim > 1 else 9
                tensor.normal_(0, width**-0.5, generator=generator)
    return network, config


def fairseq_name(name):
    for pattern, replacement in FAIRSEQ:
        name = re.sub(pattern, replacement, name)
    return name


def write_official(network, path):
    state = {fairseq_name(name): tensor for name, tensor in network.state_dict().items()}
    state["encoder.w2v_model.mask_emb"] = torch.zeros(9)
    torch.save({"model": state}, path)


def ours(shapes, official, folder):
    config = SpeechConfig("small", "MIT", ("eng_Latn",), ("sonar",), shapes)
    write(config, read_speech(official, shapes), folder)
    return load_speech_encoder(str(folder), device="cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Our speech encoder, sonar-space's, and the official file of both."""
    folder = tmp_path_factory.mktemp("speech")
    network, config = sonar_network(SMALL)
    write_official(network, folder / "official.pt")
    return ours(SMALL, folder / "official.pt", folder / "ours"), network, config, folder


def utterances(*samples):
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, size).astype(np.float32) for size in samples]


def expected(network, waveforms, batch_size):
    from sonar.inference_pipelines.speech import SpeechToEmbeddingModelPipeline

    pipeline = SpeechToEmbeddingModelPipeline(network)
    inputs = [torch.from_numpy(waveform)[None] for waveform in waveforms]
    return pipeline.predict(inputs, batch_size=batch_size)


def distance(found, wanted):
    """Return the largest relative error of a concept."""
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


# One frame at least, odd numbers of steps, and lengths that pad each other within a batch.
SAMPLES = (560, 8000, 16_000, 16_160, 16_160, 33_333, 40_000, 70_001)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_concepts(small, batch_size):
    waveforms = utterances(*SAMPLES)
    found = small[0].encode(waveforms)
    assert distance(found, expected(small[1], waveforms, batch_size)) < 1e-5


def test_sonar_space_reads_the_official_file_as_well(small):
    from sonar.models.sonar_speech import _convert_sonar_speech_checkpoint

    _, network, config, folder = small
    state = torch.load(folder / "official.pt", weights_only=True)
    read = _convert_sonar_speech_checkpoint(state, config)
    assert read.keys() == network.state_dict().keys()


def test_file_in_fairseq2s_layout(small, tmp_path):
    torch.save(small[1].state_dict(), tmp_path / "new.pt")
    found = read_speech(tmp_path / "new.pt", SMALL)
    wanted = read_speech(small[3] / "official.pt", SMALL)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_file_that_is_not_the_encoder_of_its_card(small, tmp_path):
    with pytest.raises(IntegrityError, match=r"missing tensors: encoder\.layers\.3"):
        read_speech(small[3] / "official.pt", SpeechShapes(4, 64, 4, 128, 7, 2, 4, 96, 64))
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(IntegrityError, match="is not a speech encoder"):
        read_speech(tmp_path / "other.pt", SMALL)


@pytest.mark.parametrize("samples", [400, 1000, 16_000, 50_123])
def test_log_mel_energies(samples):
    from fairseq2.data.audio import WaveformToFbankConverter

    convert = WaveformToFbankConverter(80, 2**15, channel_last=True, dtype=torch.float32)
    (waveform,) = utterances(samples)
    inputs = {"waveform": torch.from_numpy(waveform)[:, None], "sample_rate": 16_000.0}
    found, wanted = log_mel(torch.from_numpy(waveform), 80), convert(inputs)["fbank"]
    assert found.shape == wanted.shape
    # Where the terms of an energy nearly cancel, rounding errors reach the 4th digit.
    error = (found - wanted).abs()
    assert error.max() < 5e-4
    assert error.mean() < 1e-5


@pytest.mark.slow
def test_concepts_at_full_size():
    folder = Path(tempfile.mkdtemp(prefix="lcm-speech-"))
    try:
        network, _ = sonar_network(FULL)
        write_official(network, folder / "official.pt")
        speech = ours(FULL, folder / "official.pt", folder / "ours")
        waveforms = utterances(16_000, 33_333, 80_000)
        assert distance(speech.encode(waveforms), expected(network, waveforms, 3)) < 1e-5
    finally:
        shutil.rmtree(folder)
