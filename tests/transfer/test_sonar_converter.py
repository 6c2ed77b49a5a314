"""Conversion of spaces from every layout: exactly the right tensors, or a refusal."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError
from lcm_cli.files import sha256
from lcm_cli.transfer.converters.sonar import check_tokenizer, convert_half, tensor_shapes

ROLES = ("encoder", "decoder")


def expected(official, role):
    state = official.state(role)
    state.pop("final_proj.weight", None)
    return state


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def convert(official, role, source, tmp_path):
    target = tmp_path / f"{role}.safetensors"
    assert convert_half(
        role, source, target, getattr(official, role), official.languages
    ) == sha256(target)
    return load_file(target)


@pytest.mark.parametrize("role", ROLES)
def test_official_layout(official, tmp_path, role):
    found = convert(official, role, official.folder / f"{role}.pt", tmp_path)
    assert_same(found, expected(official, role))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_type_of_the_numbers_is_kept(official, tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in official.state("encoder").items()}
    torch.save({"model": state}, tmp_path / "e.pt")
    assert_same(convert(official, "encoder", tmp_path / "e.pt", tmp_path), state)


FAIRSEQ = {
    "encoder_frontend.embed.": "embed_tokens.",
    "decoder_frontend.embed.": "embed_tokens.",
    "encoder_decoder_attn": "encoder_attn",
    "output_proj": "out_proj",
    "ffn.inner_proj": "fc1",
    "ffn.out_proj": "fc2",
    "ffn_layer_norm": "final_layer_norm",
}


def to_fairseq(role, state, prefix=""):
    """Rename lcm's tensors and reorder special tokens as in fairseq and the Hub ports."""
    out = {}
    for name, tensor in state.items():
        if name == f"{role}_frontend.embed.weight":
            tensor = torch.cat([tensor[[2, 0, 3, 1]], tensor[4:]])
        renamed = name.removeprefix(f"{role}.")
        for ours, theirs in FAIRSEQ.items():
            renamed = renamed.replace(ours, theirs)
        out[prefix + renamed] = tensor
    return out


@pytest.mark.parametrize("role", ROLES)
def test_fairseq_layout(official, tmp_path, role):
    state = to_fairseq(role, expected(official, role))
    state["version"] = torch.tensor([3.0])
    state["embed_positions._float_tensor"] = torch.zeros(1)
    if role == "decoder":
        state["output_projection.weight"] = state["embed_tokens.weight"]
    torch.save({"state_dict": state}, tmp_path / "old.pt")
    assert_same(convert(official, role, tmp_path / "old.pt", tmp_path), expected(official, role))


def port(folder: Path, state, **settings):
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    config = {"model_type": "m2m_100", "activation_function": "relu", **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_port_layout(official, tmp_path, role, prefix):
    half = to_fairseq(role, expected(official, role), f"{prefix}{role}." if prefix else "")
    if prefix:  # an encoder-decoder shares one embedding and contains the other half too
        half["model.shared.weight"] = half.pop(f"model.{role}.embed_tokens.weight")
        other = ROLES[role == "encoder"]
        half |= to_fairseq(other, expected(official, other), f"model.{other}.")
    source = port(tmp_path / "port", half)
    assert_same(convert(official, role, source, tmp_path), expected(official, role))


def test_port_in_several_files_and_in_pickles(official, tmp_path):
    half = to_fairseq("encoder", expected(official, "encoder"))
    names = sorted(half)
    source = port(tmp_path / "port", {})
    (source / "model.safetensors").unlink()
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: half[name] for name in part}, source / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(convert(official, "encoder", source, tmp_path), expected(official, "encoder"))


def test_port_may_not_reach_outside(official, tmp_path):
    source = port(tmp_path / "port", {})
    (source / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="may not lie in another folder"):
        convert(official, "encoder", source, tmp_path)
    (source / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(IntegrityError, match="weight_map is not an object"):
        convert(official, "encoder", source, tmp_path)


@pytest.mark.parametrize(
    "setting", [{"activation_function": "gelu"}, {"scale_embedding": False}, {"model_type": "bart"}]
)
def test_port_with_other_settings(official, tmp_path, setting):
    half = to_fairseq("encoder", expected(official, "encoder"))
    source = port(tmp_path / "port", half, **setting)
    with pytest.raises(IntegrityError, match=next(iter(setting))):
        convert(official, "encoder", source, tmp_path)


def test_transformers_models_and_tokenizer(official, tmp_path):
    """Weights, token ids and outputs match the real classes of a Hub port."""
    transformers = pytest.importorskip("transformers")
    config = transformers.M2M100Config(
        vocab_size=official.encoder["vocabulary"], d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.M2M100ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "port")
    spm = str(official.folder / "spm.model")
    codes = list(official.languages)
    theirs = transformers.NllbTokenizer(spm, additional_special_tokens=codes)
    theirs.save_pretrained(tmp_path / "port")
    encoder, decoder = (convert(official, role, tmp_path / "port", tmp_path) for role in ROLES)

    from lcm_cli.space.decoder import DecoderConfig, TextDecoder
    from lcm_cli.space.encoder import EncoderConfig, TextEncoder
    from lcm_cli.space.tokenizer import EOS, Tokenizer

    ours = Tokenizer(official.folder / "spm.model", official.languages)
    our_encoder = TextEncoder(EncoderConfig(**official.encoder))
    our_encoder.load_state_dict(encoder)
    our_decoder = TextDecoder(DecoderConfig(**official.decoder))
    our_decoder.load_state_dict(decoder, strict=False)
    text = "die Katze ☃ schläft und ein Hund"
    for lang in codes:
        theirs.src_lang = lang
        batch = theirs(text, return_tensors="pt")
        row = ours.encode([text], lang)[0]
        with torch.inference_mode():
            concept = model.get_encoder()(**batch).last_hidden_state.mean(1)
            assert_near(our_encoder([row]), concept, additions(our_encoder))
            ids = torch.tensor([[theirs.eos_token_id, *batch.input_ids[0, :-1]]])
            states = model.model.decoder(
                ids, encoder_hidden_states=concept[:, None]
            ).last_hidden_state
            found = our_decoder(concept, [[EOS, *row[:-1]]])
            assert_near(found, states[0], additions(our_decoder))


def test_languages_of_a_port_in_another_order(official, tmp_path):
    """Each half may order the languages differently; the converted space has the given order."""
    embed = "encoder_frontend.embed.weight"
    source = port(tmp_path / "port", to_fairseq("encoder", expected(official, "encoder")))
    first = official.encoder["vocabulary"] - 3 - len(official.languages)
    ids = {code: first + 3 - i for i, code in enumerate(official.languages)}
    (source / "added_tokens.json").write_text(json.dumps(ids))
    found = convert(official, "encoder", source, tmp_path)[embed]
    wanted = expected(official, "encoder")[embed]
    assert torch.equal(found[first : first + 4], wanted[first : first + 4].flip(0))
    assert torch.equal(found[:first], wanted[:first])
    assert torch.equal(found[first + 4 :], wanted[first + 4 :])


@pytest.mark.parametrize(
    "ids",
    [
        {"eng_Latn": 30},
        {"eng_Latn": "x"},
        {"eng_Latn": 1, "fra_Latn": 31, "deu_Latn": 32, "jpn_Jpan": 33},
    ],
)
def test_port_with_invalid_ids(official, tmp_path, ids):
    source = port(tmp_path / "port", to_fairseq("encoder", expected(official, "encoder")))
    (source / "added_tokens.json").write_text(json.dumps(ids))
    with pytest.raises(IntegrityError, match="tokenizer"):
        convert(official, "encoder", source, tmp_path)


class Bomb:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_hostile_pickle_is_not_run(official, tmp_path):
    state = official.state("encoder") | {"version": Bomb(tmp_path / "run")}
    torch.save({"model": state}, tmp_path / "e.pt")
    with pytest.raises(IntegrityError, match="more than tensors"):
        convert(official, "encoder", tmp_path / "e.pt", tmp_path)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Bomb(tmp_path / "run")))
    with pytest.raises(IntegrityError, match="not a complete torch file"):
        convert(official, "encoder", plain, tmp_path)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file(official, tmp_path, share):
    whole = (official.folder / "encoder.pt").read_bytes()
    (tmp_path / "e.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(IntegrityError, match=r"e\.pt is not a complete torch file"):
        convert(official, "encoder", tmp_path / "e.pt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["e.pt"]


def test_compressed_file_is_refused(tmp_path, official):
    path = tmp_path / "e.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(IntegrityError, match="compressed"):
        convert(official, "encoder", path, tmp_path)


def damage(state, kind):
    name = "encoder.layers.1.ffn.inner_proj.weight"
    if kind == "missing":
        del state[name]
    elif kind == "foreign":
        state["encoder.layers.2.ffn.inner_proj.weight"] = state[name]
    elif kind == "shape":
        state[name] = state[name].T.contiguous()
    elif kind == "type":
        state[name] = state[name].to(torch.int8)
    elif kind == "no tensor":
        state[name] = 3


@pytest.mark.parametrize("kind", ["missing", "foreign", "shape", "type", "no tensor"])
def test_wrong_tensors_are_named(official, tmp_path, kind):
    state = official.state("encoder")
    damage(state, kind)
    torch.save({"model": state}, tmp_path / "e.pt")
    with pytest.raises(
        IntegrityError, match=r"e\.pt .*encoder\.layers\.[12]\.ffn\.inner_proj\.weight"
    ):
        convert(official, "encoder", tmp_path / "e.pt", tmp_path)
    assert not (tmp_path / "encoder.safetensors").exists()


def test_encoder_instead_of_a_decoder(official, tmp_path):
    with pytest.raises(IntegrityError, match="is not this decoder: it lacks"):
        convert(official, "decoder", official.folder / "encoder.pt", tmp_path)


def test_output_projection_must_be_the_embedding(official, tmp_path):
    state = official.state("decoder")
    state["final_proj.weight"] = state["final_proj.weight"] + 1
    torch.save({"model": state}, tmp_path / "d.pt")
    with pytest.raises(IntegrityError, match="not tied"):
        convert(official, "decoder", tmp_path / "d.pt", tmp_path)


def test_no_state_dict(official, tmp_path):
    torch.save([1, 2], tmp_path / "e.pt")
    with pytest.raises(IntegrityError, match="does not hold a state dict"):
        convert(official, "encoder", tmp_path / "e.pt", tmp_path)


def test_damaged_safetensors(official, tmp_path):
    source = port(tmp_path / "port", to_fairseq("encoder", expected(official, "encoder")))
    whole = (source / "model.safetensors").read_bytes()
    for broken in (whole[:-1], whole[:100], b"", struct.pack("<Q", 1 << 60) + whole[8:]):
        (source / "model.safetensors").write_bytes(broken)
        with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
            convert(official, "encoder", source, tmp_path)


def test_tokenizer_of_another_size(official):
    path = official.folder / "spm.model"
    check_tokenizer(path, official.encoder["vocabulary"], len(official.languages))
    with pytest.raises(IntegrityError, match="the weights have 99"):
        check_tokenizer(path, 99, len(official.languages))


def test_tokenizer_of_another_kind(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 9), model_prefix=str(tmp_path / "t5"),
        vocab_size=10, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(IntegrityError, match="special tokens"):
        check_tokenizer(tmp_path / "t5.model", 99, 4)


def test_shapes_are_those_of_sonar():
    full = {"layers": 24, "model_dim": 1024, "ffn_dim": 8192, "vocabulary": 256206}
    counts = [
        sum(
            torch.Size(shape).numel()
            for shape in tensor_shapes(role, full | {"concept_dim": 1024}).values()
        )
        for role in ROLES
    ]
    assert counts == [766_091_264, 866_902_016]
