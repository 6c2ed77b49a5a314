"""Run the kernels of decoding steps in Triton's interpreter, on the CPU, and compare their numbers.

A process of its own, as `interpreted_attention.py` is.
"""

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from beam_reference import Problem
from row_reference import near
from torch import nn
from torch.nn import functional as F

from lcm_cli.space import beam_attention, decoding_kernels, kernel_check, logits, norms
from lcm_cli.space.captured import StaticCache
from lcm_cli.space.decoder import DecoderCache, DecoderConfig, TextDecoder


def check_attention(shape: tuple[int, int, int, int, int], position: int) -> None:
    problem = Problem.drawn(shape, position, torch.float16, "cpu")
    wanted, after = problem.exact(), problem.after()
    near(problem.attend(), wanted)
    assert torch.equal(problem.kv_2SPBHd.nan_to_num(7), after.nan_to_num(7))


def check_the_check() -> None:
    """It accepts the kernels as they are, and none that is slightly wrong."""
    device = torch.device("cpu")
    assert kernel_check.kernels_agree(device)
    for name in ("launch_total", "launch_largest", "launch_add_norm", "attend_beams"):
        right = getattr(kernel_check, name)

        def wrong(*arguments: Any, right: Any = right) -> Any:
            found = right(*arguments)
            if isinstance(found, tuple):
                return found[0], found[1].roll(1, dims=0)
            return found + 0.1

        setattr(kernel_check, name, wrong)
        assert not kernel_check.kernels_agree(device), name
        setattr(kernel_check, name, right)


def check_totals(columns: int, width: int, dtype: torch.dtype) -> None:
    rows = 20 * torch.randn(4, width, dtype=dtype)[:, :columns]
    rows[0, : columns // 2] = -torch.inf
    rows[1, 1:] = -torch.inf
    wanted = rows.double().logsumexp(1, keepdim=True).float()
    torch.testing.assert_close(logits.launch_total(rows), wanted)
    rows[0, 0], rows[1, -1], rows[2] = torch.nan, torch.inf, -torch.inf
    with np.errstate(all="ignore"):
        found = logits.launch_total(rows)
    assert found.isfinite().flatten().tolist() == [False, False, False, True]


def check_largest(columns: int, width: int, count: int, dtype: torch.dtype) -> None:
    rows = torch.randn(4, width, dtype=dtype)[:, :columns]
    rows[0, : columns // 2], rows[1, 3:], rows[2] = -torch.inf, -torch.inf, rows[2].round()
    values, indices = logits.launch_largest(rows, count)
    assert torch.equal(values, rows.topk(count).values)
    assert torch.equal(values, rows.gather(1, indices))
    assert all(len(set(row)) == count for row in indices.tolist())
    # What is not a number may be left out, but nothing is out of range.
    rows[0, 5], rows[1] = torch.nan, torch.nan
    _, indices = logits.launch_largest(rows, count)
    assert indices.min() >= 0 and indices.max() < columns


def check_norms(width: int, parts: int, dtype: torch.dtype) -> None:
    norm = nn.LayerNorm(width).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tensors = [3 + torch.randn(5, width, dtype=dtype) for _ in range(parts)]
    total, normed = norms.launch_add_norm(norm, *tensors)
    assert torch.equal(total, sum(tensors[1:], tensors[0]))
    near(normed, norm.double()(total.double()))


def check_steps() -> None:
    """A decoder's steps have the logits of its steps without kernels."""
    sentences, beams, config = 2, 3, DecoderConfig(2, 32, 2, 64, 50, 32)
    decoder, plain = (TextDecoder(config).to(dtype).eval() for dtype in (torch.half, torch.float))
    plain.load_state_dict(decoder.state_dict())
    cross = [torch.randn(sentences * beams, 32) for _ in range(config.layers)]
    static = StaticCache(decoder, sentences, beams, 8, [None] * config.layers)
    static._has_kernel, growing = True, DecoderCache(config.layers, sentences)
    # One beam becomes several with the first choice, here before the first token.
    growing.follow(torch.zeros(sentences, beams, dtype=torch.long))
    for _ in range(8):
        ids = torch.randint(50, (sentences * beams,))
        static.branch()
        found = decoder.step(ids, [t.half() for t in cross], static)
        wanted = plain.step(ids, cross, growing)
        assert F.cosine_similarity(found.float(), wanted).min() > 0.999
        parents = torch.randint(beams, (sentences, beams))
        static.parents_SB.copy_(parents)
        growing.follow(parents)


def counted(*limits: Any) -> range:
    """Do as `range` does, for limits that the interpreter holds as arrays of one number."""
    return range(*(x if isinstance(x, int) else x.handle.data.item() for x in limits))


def main() -> None:
    # The interpreter's own conversion to numbers fails with new versions of NumPy.
    decoding_kernels.range = counted
    torch.manual_seed(0)
    check_attention((3, 40, 5, 2, 64), 30)
    beam_attention.LAUNCH |= {"K": 16}  # as many cases with fewer keys
    for beams, position in ((1, 0), (1, 23), (5, 0), (5, 1), (5, 10), (3, 39), (20, 3)):
        check_attention((2, 40, beams, 2, 16), position)
    logits.TOTAL |= {"W": 8, "E": 4}
    logits.MAXIMA |= {"W": 8}
    for columns, width in ((1, 1), (31, 31), (32, 40), (131, 136)):
        for dtype in (torch.float16, torch.float32):
            check_totals(columns, width, dtype)
            check_largest(1_400 + columns, 1_400 + width, 5, dtype)
    check_largest(640, 641, 10, torch.float32)
    check_the_check()
    with torch.inference_mode():
        for width, parts in ((1, 2), (32, 3), (100, 2), (100, 3)):
            check_norms(width, parts, torch.float16)
            check_norms(width, parts, torch.float32)
        check_steps()
        norms.runs = lambda device: True
        check_steps()


if __name__ == "__main__":
    main()
