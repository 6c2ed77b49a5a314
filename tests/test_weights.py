"""Stored weights: int8 with one scale per row, rounding, damaged files, fingerprints."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.files import sha256
from lcm_cli.weights import (
    Int8Matrix,
    Store,
    pieces,
    read_weights,
    relative_error,
    round_rows,
    sampled,
    without_content,
    write_safetensors,
)

# From below the least positive float16 to the largest weight that a scale can represent.
MAGNITUDES = st.sampled_from([0.0, 1e-30, 1e-8, 3e-7, 1e-5, 9e-4, 1e-3, 0.02, 1.0, 300.0, 65_000.0])
CPU = torch.device("cpu")


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Matrices of any shape and type, with rows of different magnitudes, some of them zero."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    sizes = draw(st.lists(MAGNITUDES, min_size=rows, max_size=rows))
    values = torch.rand(rows, columns, generator=generator) * 2 - 1
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    return (values * torch.tensor(sizes)[:, None]).to(dtype)


def plain(rows: Int8Matrix) -> Tensor:
    return rows.to(CPU, torch.float32)


def stored(path: Path, weights: dict[str, Any], store: Store | None = None) -> dict[str, Any]:
    """Write weights and read them back."""
    write_safetensors(path, pieces(weights, store))
    return read_weights(path)


def digest(weights: dict[str, Any]) -> bytes:
    return hashlib.sha256(b"".join(sampled(weights))).digest()


# Rounding


@given(matrices())
def test_no_weight_moves_by_more_than_half_a_scale(weight):
    rows = round_rows(weight)
    assert rows.numbers.dtype == torch.int8 and rows.scales.dtype == torch.float16
    assert bool((rows.scales > 0).all()) and int(rows.numbers.abs().max()) <= 127
    scales, size = rows.scales.float(), weight.float().abs().amax(1)
    moved = (plain(rows) - weight.float()).abs().amax(1)
    assert bool((moved <= scales * 0.5001).all())
    # A row's largest number is about 127, in rows of tiny magnitudes perhaps half of that.
    coarse = torch.where(size < 127 * 2**-17, 2.0, 1.001)
    assert bool((scales <= coarse * size / 127 + 2**-24).all())


@given(matrices())
def test_rounding_again_changes_nothing(weight):
    once = round_rows(weight)
    for dtype in (torch.float32, torch.float64):
        again = round_rows(plain(once).to(dtype))
        assert torch.equal(once.numbers, again.numbers) and torch.equal(once.scales, again.scales)


def test_rounding_again_changes_nothing_for_every_scale():
    """All magnitudes with a float16 scale, finely spaced around the numbers of float16."""
    scales = torch.arange(1, 0x5C00, dtype=torch.int16).view(torch.float16).float()  # up to 256
    for factor in (0.5001, 0.9, 1.0, 1.0004, 1.4999):
        size = 127 * scales * factor
        weight = size[:, None] * torch.tensor([1.0, -0.8, 0.503, 0.004, 0.0])
        once = round_rows(weight)
        again = round_rows(plain(once))
        assert torch.equal(once.numbers, again.numbers) and torch.equal(once.scales, again.scales)


@given(matrices())
def test_the_product_is_exact_in_float32(weight):
    rows = round_rows(weight)
    exact = rows.numbers.double() * rows.scales.double()[:, None]
    assert torch.equal(plain(rows).double(), exact)


@given(matrices())
def test_computing_in_int8_rounds_no_weight_again(weight):
    """Given the file's scales, the kernel uses the weights of the file."""
    from lcm_cli.int8 import Int8Linear

    rows = round_rows(weight)
    layer = Int8Linear(plain(rows), None, rows.scales.float())
    used = layer(torch.eye(weight.shape[1])).t()  # the inputs 0 and 1 are quantized exactly
    assert torch.allclose(used, plain(rows), rtol=1e-5)


# Files


@given(weight=matrices(), data=st.data())
def test_round_trip(tmp_path_factory, weight, data):
    """Files hold the rounded matrices, beside any other tensors, whatever file has the scales."""
    folder = tmp_path_factory.mktemp("w")
    vector = torch.linspace(-1, 1, data.draw(st.integers(1, 9)))
    cube = torch.randn(2, 3, 2)
    found = stored(folder / "a.safetensors", {"m.weight": weight, "b": vector, "c": cube}, "int8")
    rows = round_rows(weight)
    assert isinstance(found["m.weight"], Int8Matrix) and found["m.weight"].shape == weight.shape
    assert torch.equal(plain(found["m.weight"]), plain(rows))
    for name, tensor in (("b", vector), ("c", cube)):
        assert torch.equal(found[name], tensor.half())
    raw = load_file(folder / "a.safetensors")
    parts = [folder / "1.safetensors", folder / "2.safetensors"]
    first = {name for name in raw if data.draw(st.booleans())}
    for path, names in zip(parts, (first, raw.keys() - first), strict=True):
        save_file({name: raw[name] for name in names}, path)
    again = read_weights(*parts)
    assert again.keys() == found.keys()
    assert digest(again) == digest(found)
    assert torch.equal(plain(again["m.weight"]), plain(rows))


@given(matrices())
def test_conversion_between_formats(tmp_path_factory, weight):
    """int8 to float32 and back gives the same numbers and the same file."""
    folder = tmp_path_factory.mktemp("w")
    names = [f"{number}.safetensors" for number in range(4)]
    rounded = stored(folder / names[0], {"m": weight}, "int8")
    wide = stored(folder / names[1], rounded, "float32")
    assert relative_error(rounded, wide) == 0
    stored(folder / names[2], wide, "int8")
    stored(folder / names[3], rounded, "int8")
    contents = {(folder / names[i]).read_bytes() for i in (0, 2, 3)}
    assert len(contents) == 1


def test_written_file_is_aligned_and_complete(tmp_path):
    """Odd sizes of int8 tensors do not misalign the others."""
    tensors = {"a": torch.arange(3.0), "bb": torch.randn(5, 7).T, "c": torch.empty(0, 4)}
    tensors |= {"d": torch.ones(3, 5, dtype=torch.int8), "e": torch.ones(1).half()}
    path = tmp_path / "t.safetensors"
    assert write_safetensors(path, {k: [v] for k, v in tensors.items()}) == sha256(path)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert found[name].data_ptr() % tensor.element_size() == 0
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_only_matrices_become_int8_and_kept_tensors_stay(tmp_path):
    weights = {
        "m": torch.randn(4, 6),
        "normalizer.scale": torch.rand(6),
        "codebooks_CUD": torch.rand(2, 3, 4),
        "normalizer.matrix": torch.rand(3, 3),
        "bias": torch.rand(4),
    }
    kept = ("normalizer.", "codebooks")
    write_safetensors(tmp_path / "w.safetensors", pieces(weights, "int8", kept))
    raw = load_file(tmp_path / "w.safetensors")
    assert {name: tensor.dtype for name, tensor in raw.items()} == {
        "m": torch.int8,
        "m.scale": torch.float16,
        "bias": torch.float16,
        "normalizer.scale": torch.float32,
        "normalizer.matrix": torch.float32,
        "codebooks_CUD": torch.float32,
    }
    assert read_weights(tmp_path / "w.safetensors").keys() == weights.keys()


@pytest.mark.parametrize("store", ["float16", "int8"])
@pytest.mark.parametrize("value", [1e6, 65_521.0, float("inf"), float("nan")])
@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_numbers_out_of_float16_range_are_refused(tmp_path, store, value, shape):
    weight = torch.ones(shape)
    weight.view(-1)[-1] = -value
    found = store if len(shape) == 2 else "float16"
    with pytest.raises(IntegrityError, match=f"^m cannot be stored as {found}: .*65,504") as caught:
        stored(tmp_path / "w.safetensors", {"m": weight}, store)
    assert "float32" in caught.value.hint


def test_float16_weights_are_finite_in_int8(tmp_path):
    """Even if the weights are used in float16, however their scale was rounded."""
    for size in range(64_000, 65_400, 7):
        rows = round_rows(torch.tensor([[float(size), -1.0]]))
        assert bool(rows.to(CPU, torch.float16).isfinite().all())


def test_relative_error():
    assert relative_error({"a": torch.tensor([3.0, 4.0])}, {"a": torch.tensor([3.0, 4.5])}) == 0.1
    assert relative_error({"a": torch.zeros(2)}, {"a": torch.zeros(2)}) == 0


# Damage


def damaged(kind: str) -> dict[str, Tensor]:
    """Return the tensors of a file with an int8 matrix, damaged in the given way."""
    rows = round_rows(torch.randn(4, 6))
    good = {"m.weight": rows.numbers, "m.weight.scale": rows.scales, "b": torch.ones(4).half()}
    scales = rows.scales.clone()
    if kind in ("nan", "inf", "-1", "0"):
        scales[2] = float(kind)
    changes: dict[str, Any] = {
        "no scales": {"m.weight.scale": None},
        "too few": {"m.weight.scale": scales[:3].clone()},
        "none": {"m.weight.scale": scales[:0].clone()},
        "one": {"m.weight.scale": scales[0].clone()},
        "square": {"m.weight.scale": scales[:, None].clone()},
        "wide": {"m.weight.scale": scales.float()},
        "of floats": {"m.weight": torch.ones(4, 6)},
        "vector": {"m.weight": rows.numbers[0].clone()},
    }
    changed = good | changes.get(kind, {"m.weight.scale": scales})
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no scales", "m.weight is int8 but has no scales: m.weight.scale is missing"),
        ("too few", r"m.weight.scale is torch.float16 of shape \(3,\), but should be float16, one"),
        ("none", r"m.weight.scale is torch.float16 of shape \(0,\)"),
        ("one", r"m.weight.scale is torch.float16 of shape \(\)"),
        ("square", r"m.weight.scale is torch.float16 of shape \(4, 1\)"),
        ("wide", r"m.weight.scale is torch.float32 of shape \(4,\)"),
        ("of floats", "m.weight.scale scales a matrix in torch.float32, not int8"),
        ("vector", r"m.weight is int8 of shape \(6,\), not a matrix"),
        *((value, "m.weight.scale: 1 of its scales are no") for value in ("nan", "inf", "-1", "0")),
    ],
)
def test_damage_is_described(tmp_path, kind, message):
    path = tmp_path / "w.safetensors"
    save_file(damaged("good"), path)
    assert read_weights(path)["m.weight"].shape == (4, 6)
    save_file(damaged(kind), path)
    with pytest.raises(IntegrityError, match=rf"w\.safetensors: {message}"):
        read_weights(path)


def test_missing_and_truncated_files(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(NotFoundError, match=r"w\.safetensors"):
        read_weights(path)
    save_file(damaged("good"), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"w\.safetensors is damaged"):
        read_weights(path)


# Fingerprints


@given(matrices())
def test_the_digest_follows_the_numbers_not_their_storage(tmp_path_factory, weight):
    folder = tmp_path_factory.mktemp("w")
    weights = {"m": weight, "a": torch.arange(3.0)}
    own = digest(weights)
    wide = {name: tensor.float() for name, tensor in reversed(weights.items())}
    assert digest(wide) == own
    assert digest(stored(folder / "a.safetensors", wide)) == own
    rounded = stored(folder / "b.safetensors", weights, "int8")
    exact = stored(folder / "c.safetensors", rounded, "float32")
    assert digest(exact) == digest(rounded)
    assert (digest(rounded) == own) == torch.equal(plain(rounded["m"]), weight.float())


@given(matrices(), st.data())
def test_the_digest_changes_with_any_number_of_a_small_tensor(weight, data):
    weight = weight.float()
    place = data.draw(st.integers(0, weight.numel() - 1))
    other = weight.clone()
    other.view(-1)[place] = 70_000.0
    assert digest({"m": other}) != digest({"m": weight})


def test_the_digest_depends_on_names_and_shapes():
    weight = torch.randn(4, 6)
    found = {
        digest(weights)
        for weights in (
            {"m": weight},
            {"n": weight},
            {"m": weight.view(6, 4)},
            {"m": weight.view(-1)},
            {"m": weight, "z": torch.zeros(0)},
            {"m": weight[:2], "n": weight[2:]},
        )
    }
    assert len(found) == 6


def test_large_matrices_are_sampled():
    weight = torch.randn(5000, 64)
    seen = sum(map(len, sampled({"m": weight})))
    assert 4096 * 4 <= seen < weight.nbytes / 10
    for row in (0, 4999):
        other = weight.clone()
        other[row, 5] += 1
        assert digest({"m": other}) != digest({"m": weight})
    assert digest({"m": weight * 1.001}) != digest({"m": weight})


@pytest.mark.slow
def test_a_space_is_loaded_without_sympy() -> None:
    code = "import sys, lcm_cli; lcm_cli.load_space('tiny').encoder; print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_networks_without_content_have_the_shapes_and_values_of_others() -> None:
    with without_content():
        empty = nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 5), nn.LayerNorm(6))
        with torch.device("cpu"):
            kept = nn.init.normal_(torch.zeros(8))
    assert all(p.is_meta and p.requires_grad for p in empty.parameters())
    assert [tuple(p.shape) for p in empty.parameters()] == [(2, 3), (2,), (4, 5), (6,), (6,)]
    assert kept.device.type == "cpu" and bool((kept != 0).any())
