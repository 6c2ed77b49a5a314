"""The interface of spaces, on the bundled space `tiny`."""

import json
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import additions, assert_near
from safetensors.torch import load_file, save_file

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.hub.layouts import SPACE_FILES as FILES
from lcm_cli.int8 import Int8Linear
from lcm_cli.space import DecodeOptions, Space, Text, load_space
from lcm_cli.space.decoder import DecoderCache
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.loading import load_weights
from lcm_cli.space.search import search
from lcm_cli.space.tokenizer import EOS
from lcm_cli.transfer.convert import convert

SENTENCES = [
    "The cat sleeps.",
    "Tom went to school, but he forgot his books at home.",
    "Yes.",
    "The cat sleeps.",
    "Where is the river?",
    "I would like to know what you are doing here tonight.",
]


@pytest.fixture(scope="module")
def tiny() -> Space:
    return load_space("tiny", device="cpu")


@pytest.fixture(scope="module")
def concepts(tiny: Space) -> np.ndarray:
    return tiny.encode(SENTENCES, "eng_Latn").concepts


def copy_of_tiny(tiny: Space, folder: Path) -> Path:
    """Copy the bundled space to `folder`."""
    files = tiny.files
    for path, name in (
        (files.encoder, "encoder.safetensors"),
        (files.decoder, "decoder.safetensors"),
        (files.tokenizer, "tokenizer.model"),
    ):
        shutil.copyfile(path, folder / name)
    (folder / "config.json").write_text(json.dumps(dict(files.config)))
    return folder


def test_order_and_count_are_kept_and_duplicates_are_equal(tiny, concepts):
    alone = np.concatenate([tiny.encode([s], "eng_Latn").concepts for s in SENTENCES])
    assert concepts.shape == (6, tiny.dim) and concepts.dtype == np.float32
    assert_near(concepts, alone, additions(tiny.encoder))
    assert np.array_equal(concepts[0], concepts[3])


def test_small_batches_change_nothing(tiny, concepts):
    narrow = load_space("tiny", device="cpu", batch_tokens=8)
    found = narrow.encode(SENTENCES, "eng_Latn").concepts
    assert_near(found, concepts, additions(tiny.encoder))
    wide, small = (s.decode(concepts, ["fra_Latn"]) for s in (tiny, narrow))
    assert texts(wide) == texts(small)


def test_each_sentence_may_have_its_own_language(tiny):
    both = tiny.encode(["The cat sleeps.", "Le chat dort."], ["eng_Latn", "fra_Latn"]).concepts
    alone = tiny.encode(["Le chat dort."], "fra_Latn").concepts
    assert_near(both[1:], alone, additions(tiny.encoder))


def test_translations_are_near(tiny, concepts):
    french = tiny.encode(["Le chat dort.", "Oui."], "fra_Latn").concepts
    similarity = french @ concepts.T
    similarity /= np.linalg.norm(french, axis=1)[:, None] * np.linalg.norm(concepts, axis=1)
    assert similarity.argmax(axis=1).tolist() in ([0, 2], [3, 2])


def test_progress_counts_every_sentence(tiny, concepts):
    encoded, decoded = [], []
    tiny.encode(SENTENCES, "eng_Latn", encoded.append)
    tiny.decode(concepts, ["fra_Latn", "deu_Latn"], progress=decoded.append)
    assert sum(encoded) == len(SENTENCES) and sum(decoded) == 2 * len(SENTENCES)


def test_nothing_gives_nothing(tiny):
    empty = tiny.encode([], "eng_Latn")
    assert empty.concepts.shape == (0, tiny.dim) and empty.truncated == []
    assert tiny.decode(empty.concepts, ["fra_Latn"]) == {"fra_Latn": []}


def test_a_sentence_over_the_limit_is_reported(tiny):
    limit = tiny.encoder.config.max_length
    long = "cat " * 2 * limit
    encoded = tiny.encode(["Yes.", long], "eng_Latn")
    (cut,) = encoded.truncated
    assert cut.index == 1 and cut.limit == limit and cut.tokens > limit
    assert np.isfinite(encoded.concepts).all()


def test_one_pass_decodes_into_several_languages(tiny, concepts):
    together = tiny.decode(concepts, ["deu_Latn", "spa_Latn"])
    for lang in ("deu_Latn", "spa_Latn"):
        assert texts(tiny.decode(concepts, [lang])) == texts({lang: together[lang]})


def test_n_best_come_best_first(tiny, concepts):
    found = tiny.decode(concepts, ["eng_Latn"], DecodeOptions(beam=4, n_best=3))["eng_Latn"]
    for row in found:
        assert len(row) == 3 and len({t.text for t in row}) == 3
        assert [t.score for t in row] == sorted((t.score for t in row), reverse=True)


def test_limits_hold_for_each_sentence(tiny, concepts):
    limits = [2, 5, 3, 2, 9, 4]
    found = tiny.decode(concepts, ["eng_Latn"], limits=limits)["eng_Latn"]
    for (best, *_), limit in zip(found, limits, strict=True):
        assert len(tiny.tokenize([best.text], "eng_Latn")[0]) - 2 < limit


def test_sampling_depends_on_the_seed_not_on_the_batch(tiny, concepts):
    options = DecodeOptions(sample=True, temperature=2.0, n_best=2, seed=0, max_tokens=20)
    whole = tiny.decode(concepts, ["eng_Latn"], options)["eng_Latn"]
    first = tiny.decode(concepts[:2], ["eng_Latn"], options)["eng_Latn"]
    assert [[t.text for t in row] for row in whole[:2]] == [[t.text for t in r] for r in first]
    other = replace(options, seed=1)
    assert texts({"e": whole}) != texts(tiny.decode(concepts, ["eng_Latn"], other))


def test_a_seed_may_have_any_size(tiny, concepts):
    options = DecodeOptions(sample=True, seed=10**30, max_tokens=5)
    assert all(texts(tiny.decode(concepts, ["eng_Latn"], options)))


def test_a_limit_outranks_the_fewest_tokens(tiny, concepts):
    limits, options = [2, 5, 3, 2, 9, 4], DecodeOptions(min_tokens=8)
    found = tiny.decode(concepts, ["eng_Latn"], options, limits=limits)["eng_Latn"]
    for (best, *_), limit in zip(found, limits, strict=True):
        assert len(tiny.tokenize([best.text], "eng_Latn")[0]) - 2 < limit


def test_sampling_only_the_most_likely_token_is_greedy(tiny, concepts):
    greedy = tiny.decode(concepts, ["fra_Latn"], DecodeOptions(beam=1))
    for cut in ({"top_k": 1}, {"top_p": 1e-9}):
        assert texts(tiny.decode(concepts, ["fra_Latn"], DecodeOptions(sample=True, **cut))) == (
            texts(greedy)
        )


def test_no_repeated_ngrams(tiny):
    noise = 3 * np.random.default_rng(0).standard_normal((12, tiny.dim)).astype(np.float32)
    options = DecodeOptions(beam=2, max_tokens=40, no_repeat_ngram=2)
    rows = tiny.tokenize(texts(tiny.decode(noise, ["eng_Latn"], options)), "eng_Latn")
    free = tiny.tokenize(
        texts(tiny.decode(noise, ["eng_Latn"], DecodeOptions(beam=2, max_tokens=40))), "eng_Latn"
    )
    assert sum(map(repeats, rows)) < sum(map(repeats, free))


def test_min_tokens_holds(tiny, concepts):
    languages, limits = [tiny.tokenizer.language("eng_Latn")] * len(concepts), [40] * len(concepts)
    options = DecodeOptions(beam=1, min_tokens=12)
    found = search(tiny.decoder, torch.from_numpy(concepts), languages, limits, options)
    lengths = [len(best.ids) + 1 for best, *_ in found]  # with the end token
    assert min(lengths) == 12


def test_int8_is_close(tiny, concepts):
    int8 = load_space("tiny", device="cpu", precision="int8")
    found = int8.encode(SENTENCES, "eng_Latn").concepts
    cosine = (found * concepts).sum(1)
    cosine /= np.linalg.norm(found, axis=1) * np.linalg.norm(concepts, axis=1)
    # The mean is 0.025 in a space this small.
    assert (1 - cosine).max() < 4e-2
    assert len(texts(int8.decode(concepts, ["fra_Latn"]))) == len(SENTENCES)


def test_bfloat16_is_close(concepts):
    lower = load_space("tiny", device="cpu", precision="bfloat16")
    found = lower.encode(SENTENCES, "eng_Latn").concepts
    assert np.abs(found - concepts).max() < 0.1
    assert all(texts(lower.decode(concepts, ["fra_Latn"])))


@pytest.mark.gpu
def test_cuda_gives_the_same_concepts_and_texts(tiny, concepts):
    cuda = load_space("tiny", device="cuda", precision="float32")
    assert np.abs(cuda.encode(SENTENCES, "eng_Latn").concepts - concepts).max() <= 1e-3
    assert texts(cuda.decode(concepts, ["fra_Latn"])) == texts(tiny.decode(concepts, ["fra_Latn"]))


def test_the_fingerprint_covers_encoder_and_tokenizer(tiny, tmp_path):
    copy = copy_of_tiny(tiny, tmp_path)
    assert load_space(str(copy)).fingerprint == tiny.fingerprint
    with (copy / "decoder.safetensors").open("ab") as file:
        file.write(b"x")
    assert load_space(str(copy)).fingerprint == tiny.fingerprint
    state = load_file(copy / "encoder.safetensors")
    save_file(state | {"layer_norm.bias": state["layer_norm.bias"] * 2}, copy / FILES["encoder"])
    assert load_space(str(copy)).fingerprint != tiny.fingerprint
    save_file(state, copy / FILES["encoder"])
    assert load_space(str(copy)).fingerprint == tiny.fingerprint
    with (copy / "tokenizer.model").open("ab") as file:
        file.write(b"x")
    assert load_space(str(copy)).fingerprint != tiny.fingerprint


@pytest.mark.slow
def test_the_fingerprint_depends_on_values_not_on_storage(tiny, tmp_path):
    """Rounded weights are another space; the same values stored otherwise are the same space."""
    convert("tiny", tmp_path / "half", "float16")
    half = load_space(str(tmp_path / "half"), device="cpu")
    convert(str(tmp_path / "half"), tmp_path / "int8", "int8")
    rounded = load_space(str(tmp_path / "int8"), device="cpu")
    assert rounded.fingerprint != half.fingerprint != tiny.fingerprint
    convert(str(tmp_path / "int8"), tmp_path / "float32", "float32")
    state = load_file(tmp_path / "float32" / FILES["encoder"])
    save_file(dict(reversed(state.items())), tmp_path / "float32" / FILES["encoder"])  # reordered
    wide = load_space(str(tmp_path / "float32"), device="cpu")
    assert wide.fingerprint == rounded.fingerprint
    found = [space.encode(SENTENCES, "eng_Latn").concepts for space in (rounded, wide)]
    assert np.array_equal(*found)
    assert texts(rounded.decode(found[0], ["deu_Latn"])) == texts(
        wide.decode(found[0], ["deu_Latn"])
    )


def test_the_language_token_counts_in_scores_only_if_the_config_says_so(random_space, tmp_path):
    """Without it, the score of a sentence lacks exactly its log probability."""
    shutil.copytree(random_space, tmp_path / "silent")
    config = json.loads((random_space / "config.json").read_text())
    config["decoder"]["scores_language"] = False
    (tmp_path / "silent" / "config.json").write_text(json.dumps(config))
    spaces = [load_space(str(path), device="cpu") for path in (random_space, tmp_path / "silent")]
    assert spaces[0].fingerprint == spaces[1].fingerprint
    concepts = torch.from_numpy(spaces[0].encode(SENTENCES, "eng_Latn").concepts)
    language = spaces[0].tokenizer.language("deu_Latn")
    languages, limits = [language] * len(concepts), [20] * len(concepts)
    greedy = DecodeOptions(beam=1)
    with_R, without_R = (
        [found[0] for found in search(s.decoder, concepts, languages, limits, greedy)]
        for s in spaces
    )
    decoder = spaces[0].decoder
    ends, cache = torch.full((len(concepts),), EOS), DecoderCache(2, len(concepts))
    with torch.inference_mode():
        first_RV = decoder.step(ends, decoder.cross(concepts), cache).log_softmax(dim=1)
    for a, b, expected in zip(with_R, without_R, first_RV[:, language].tolist(), strict=True):
        assert a.ids == b.ids
        length = len(a.ids) + 2  # </s> and the language token
        assert (a.score - b.score) * length == pytest.approx(expected, rel=1e-4)


def test_int8_files_lose_nothing_more_in_int8_arithmetic(tiny, tmp_path):
    """The int8 kernels use exactly the stored rows."""
    convert("tiny", tmp_path / "int8", "int8")
    space = load_space(str(tmp_path / "int8"), device="cpu", precision="int8")
    stored = load_file(tmp_path / "int8" / FILES["encoder"])
    layers = [(n, m) for n, m in space.encoder.named_modules() if isinstance(m, Int8Linear)]
    assert len(layers) == 6 * tiny.files.config["encoder"]["layers"]
    for name, layer in layers:
        assert_uses(layer, stored, name)
    own = load_file(tmp_path / "int8" / FILES["decoder"])
    assert_uses(space.decoder.output, own, "decoder_frontend.embed")


def assert_uses(layer, stored, name):
    numbers, scales = stored[f"{name}.weight"].float(), stored[f"{name}.weight.scale"].float()
    inputs = torch.eye(numbers.shape[1])  # 0 and 1 are quantized exactly
    bias = stored[f"{name}.bias"].float() if f"{name}.bias" in stored else 0.0
    used = (layer(inputs) - bias).t() / scales[:, None]
    assert (used - numbers).abs().max() < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_from_int8_have_the_requested_dtype(tiny, tmp_path, dtype):
    convert("tiny", tmp_path / "int8", "int8")
    config = EncoderConfig(**tiny.files.config["encoder"])
    path = tmp_path / "int8" / FILES["encoder"]
    network = load_weights(TextEncoder, config, path, torch.device("cpu"), dtype)
    stored = load_file(path)
    for name, weight in network.state_dict().items():
        wanted = stored[name].float()
        if name + ".scale" in stored:
            wanted = wanted * stored[f"{name}.scale"].float()[:, None]
        assert torch.equal(weight, wanted.to(dtype))


MATRIX = "encoder.layers.0.ffn.inner_proj.weight"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "scales", "message"),
    [
        (f"{MATRIX}.scale", None, f"{MATRIX} is int8 but has no scales"),
        (
            f"{MATRIX}.scale",
            torch.full((1536,), -1.0),
            f"{MATRIX}.scale: 1536 of its scales are no",
        ),
        (MATRIX, None, f"lacks {MATRIX}"),
        ("layer_norm.weight.scale", torch.ones(384), "layer_norm.weight.scale scales a matrix in"),
    ],
)
def test_a_damaged_space_in_int8(lcm, tmp_path, changed, scales, message):
    """The error names the file and the tensor."""
    convert("tiny", tmp_path / "int8", "int8")
    path = tmp_path / "int8" / FILES["encoder"]
    state = {name: tensor.clone() for name, tensor in load_file(path).items() if name != changed}
    save_file(state if scales is None else state | {changed: scales.half()}, path)
    done = lcm("embed", "-", "--space", tmp_path / "int8", "--json", input=b"The cat sleeps.")
    assert (done.code, done.stdout) == (5, "")
    assert "encoder.safetensors" in done.stderr and message in done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 7), np.float32), "shape"),
        (np.full((1, 384), np.nan, np.float32), "not finite"),
        (np.zeros(384, np.float32), "shape"),
    ],
)
def test_bad_concepts(tiny, values, words):
    with pytest.raises(IntegrityError, match=words):
        tiny.decode(values, ["eng_Latn"])


def test_an_unpaired_surrogate(tiny):
    with pytest.raises(IntegrityError):
        tiny.encode(["bad \ud800 text"], "eng_Latn")


def test_unknown_names(tiny):
    with pytest.raises(NotFoundError, match="frx"):
        tiny.find_language("frx")
    with pytest.raises(NotFoundError, match="tinny"):
        load_space("tinny")
    with pytest.raises(UsageError, match="float8"):
        load_space("tiny", precision="float8")
    with pytest.raises(UsageError, match="device"):
        load_space("tiny", device="quantum")


def test_a_damaged_space(tiny, tmp_path):
    copy = copy_of_tiny(tiny, tmp_path)
    weights = copy / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(IntegrityError, match=r"encoder\.safetensors"):
        load_space(str(copy)).encode(["Hello."], "eng_Latn")


def test_weights_of_another_shape(tiny, tmp_path):
    copy = copy_of_tiny(tiny, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["encoder"]["layers"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="lacks"):
        _ = load_space(str(copy)).encoder


def test_a_tokenizer_of_another_space(tiny, tmp_path):
    copy = copy_of_tiny(tiny, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["languages"] = config["languages"][:-1]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match="ids"):
        load_space(str(copy)).encode(["Hello."], "eng_Latn")


@pytest.mark.parametrize(
    "values",
    [{"beam": 0}, {"n_best": 6}, {"min_tokens": 9, "max_tokens": 3}, {"temperature": 0.0}],
)
def test_options_out_of_range(values):
    with pytest.raises(UsageError):
        DecodeOptions(**values)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_float32_weights_stay_memory_mapped(tmp_path):
    config = EncoderConfig(layers=1, model_dim=256, heads=2, ffn_dim=32, vocabulary=200_000)
    path = tmp_path / "encoder.safetensors"
    save_file(TextEncoder(config).state_dict(), path)
    before = private_memory()
    loaded = load_weights(TextEncoder, config, path, torch.device("cpu"), torch.float32)
    assert loaded([[5, 6, 7, 3]]).isfinite().all()
    # Part of the growth is torch's own: its thread pools start at the first product.
    assert private_memory() - before < path.stat().st_size / 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_decoding_returns_its_memory():
    space = load_space("tiny", device="cpu")
    sentences = [f"Tom bought {n} old books." for n in range(204)]  # one batch of 1,020 beams
    concepts = space.encode(sentences, "eng_Latn").concepts
    space.decode(concepts[:1], ["deu_Latn"])  # loads the decoder
    before = private_memory()
    space.decode(concepts, ["deu_Latn"], limits=[12 + n % 4 for n in range(204)])
    logits = 4 * 1020 * space.decoder.config.vocabulary  # bytes that each step of the batch takes
    assert private_memory() - before < logits / 2


def private_memory() -> int:
    """Return this process's resident memory that is not backed by a file, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def texts(found: dict[str, list[list[Text]]]) -> list[str]:
    """Return the best text of each sentence."""
    return [row[0].text for rows in found.values() for row in rows]


def repeats(row: list[int]) -> int:
    """Count the bigrams of a row that occurred in it before."""
    pairs = list(pairwise(row))
    return len(pairs) - len(set(pairs))
