"""Several documents in one row: each has the same loss as in a row of its own."""

import dataclasses
from typing import Any

import pytest
import torch
from rounding import additions, assert_near
from torch import Tensor

from lcm_cli.models.checkpoint import build
from lcm_cli.models.config import preset
from lcm_cli.models.diffusion_training import Draws
from lcm_cli.models.interface import Batch
from lcm_cli.models.layers import packed_mask, positions_in_documents
from lcm_cli.training.parallel import deal

DIM = 12


def _build(kind: str) -> Any:
    config: Any = preset(kind, "nano", concept_dim=DIM, max_length=8)
    if kind == "quant":  # with a single codebook, the draw of the codebook is not random
        config = dataclasses.replace(config, codebooks=1)
    torch.manual_seed(0)
    model = build(config).eval()
    for parameter in model.parameters():  # AdaLN starts at zero, which would hide all else
        torch.nn.init.normal_(parameter, std=0.3)
    if kind == "quant":
        torch.nn.init.normal_(model.quantizer.codebooks_CUD)
    return model


@pytest.fixture(params=["base", "two_tower", "one_tower", "quant", "sonar_llm"])
def model(request: pytest.FixtureRequest) -> Any:
    return _build(request.param)


def _documents(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, DIM, generator=generator) for length in lengths]


def _draws(documents: list[Tensor], given: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Draw noise and timesteps for the targets of each document."""
    generator = torch.Generator().manual_seed(2)
    sizes = [len(document) - source for document, source in zip(documents, given, strict=True)]
    return [
        (
            torch.randn(size, DIM, generator=generator),
            torch.randint(100, (size,), generator=generator),
        )
        for size in sizes
    ]


def _errors(model: Any, batch: Batch, draws: list[list[tuple[Tensor, Tensor]]]) -> Tensor:
    """Return the loss of each target; a document has the same noise wherever it is placed."""
    if not hasattr(model, "schedule"):
        errors: Tensor = model.loss(batch).errors_N
        return errors
    pad = torch.nn.utils.rnn.pad_sequence
    noise = pad([torch.cat([noise for noise, _ in row]) for row in draws], batch_first=True)
    steps = pad([torch.cat([t for _, t in row]) for row in draws], batch_first=True)
    errors = model.loss(batch, draws=Draws(noise, steps, None)).errors_N
    return errors


def test_packing_changes_no_loss(model: Any) -> None:
    documents = _documents(3, 1, 4, 2, 5)
    draws = _draws(documents, [0] * 5)
    alone = torch.cat(
        [
            _errors(model, Batch.of([document]), [[draw]])
            for document, draw in zip(documents, draws, strict=True)
        ]
    )
    a, b, c, d, e = documents
    packed = Batch.packed([[a, b, c], [d, e]])
    together = _errors(model, packed, [draws[:3], draws[3:]])
    assert len(together) == len(alone) >= 10
    assert_near(together, alone, additions(model))


def test_packed_rows_beside_one_with_a_source(model: Any) -> None:
    documents, given = _documents(2, 3, 6), [0, 0, 4]
    draws = _draws(documents, given)
    alone = torch.cat(
        [
            _errors(model, Batch.of([document], [source] if source else None), [[draw]])
            for document, source, draw in zip(documents, given, draws, strict=True)
        ]
    )
    packed = Batch.packed([documents[:2], documents[2:]], [0, 4])
    together = _errors(model, packed, [draws[:2], draws[2:]])
    assert len(together) == len(alone) >= 5
    assert_near(together, alone, additions(model))


def test_the_gradients_are_the_same_too() -> None:
    model = _build("base")
    a, b, c = _documents(3, 4, 2)
    gradients = []
    for batch in (Batch.of([a, b, c]), Batch.packed([[a, b], [c]])):
        model.zero_grad()
        model.loss(batch).value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert_near(gradients[0], gradients[1], 2 * additions(model))


def test_segments() -> None:
    packed = Batch.packed([_documents(2, 1, 2), _documents(3)])
    assert packed.segments_BS is not None
    assert packed.segments_BS.tolist() == [[0, 0, 1, 2, 2], [0, 0, 0, -1, -1]]
    assert positions_in_documents(packed.segments_BS).tolist() == [[0, 1, 0, 0, 1], [0, 1, 2, 0, 1]]
    mask = packed_mask(packed.segments_BS)[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert packed.learned(first=1).sum(dim=1).tolist() == [2, 2]
    assert packed.to("cpu").segments_BS is not None
    assert Batch.packed([_documents(2), _documents(3)]).segments_BS is None


def test_rows_are_distributed_evenly_and_none_is_lost() -> None:
    lengths = [9, 1, 4, 4, 7, 2, 3]
    batch = Batch.of(_documents(*lengths), [0, 0, 1, 0, 2, 0, 0])
    hands = deal(lengths, 3)
    assert sorted(row for hand in hands for row in hand) == list(range(7))
    assert hands == [[0, 1], [4, 6], [2, 3, 5]]  # the longest first, to the lightest process
    loads = [sum(lengths[row] for row in hand) for hand in hands]
    assert max(loads) - min(loads) <= 1
    shards = [batch.rows(hand) for hand in hands]
    assert [shard.lengths_B.tolist() for shard in shards] == [
        [lengths[row] for row in hand] for hand in hands
    ]
    for shard, hand in zip(shards, hands, strict=True):
        assert shard.sources_B is not None and shard.concepts_BSD.shape[1] == max(
            lengths[row] for row in hand
        )
        for number, row in enumerate(hand):
            length = lengths[row]
            assert torch.equal(
                shard.concepts_BSD[number, :length], batch.concepts_BSD[row, :length]
            )


def test_the_shards_of_packed_rows_have_the_loss_of_the_whole() -> None:
    model = _build("base")
    batch = Batch.packed([_documents(3, 2), _documents(4), _documents(2, 2, 2)])
    whole = model.loss(batch).value
    hands = deal(batch.lengths_B.tolist(), 2)
    parts = [model.loss(batch.rows(hand)).value for hand in hands]
    assert_near(sum(parts), whole, additions(model))


def test_a_process_without_documents_has_no_targets(model: Any) -> None:
    model.train()
    empty = Batch.packed([_documents(3, 2)]).rows([])
    loss = model.loss(empty)
    assert (loss.targets, float(loss.value.detach())) == (0, 0.0)
    loss.value.backward()
