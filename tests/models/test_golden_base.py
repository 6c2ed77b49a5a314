"""Base-LCM against the official implementation: forward, cache, losses, gradients, training."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rounding import additions, rounding
from torch import Tensor

from lcm_cli.models.base_lcm import BaseLCM
from lcm_cli.models.config import SquaredError
from lcm_cli.models.interface import Batch
from lcm_cli.models.key_value_cache import KeyValueCache
from lcm_cli.training.parallel import MicroBatches, Share
from lcm_cli.training.recipes.model import Training
from lcm_cli.training.trainers.concept_model import ModelTrainer
from lcm_cli.transfer.converters.official import official_config, official_state

FILES = ["base_model", "base_forward", "base_losses", "base_train8_final_weights", "base_variants"]
COMPARED = 111
CASES = [
    f"{kind}_{reduction}_rmse{root}_ctx{context}"
    for kind, contexts in (("next_sentence_mse", (1, 3)), ("target_mse", (1,)))
    for reduction in ("sum", "mean")
    for root in (0, 1)
    for context in contexts
]


@pytest.fixture
def model(golden: Callable[[str], Any]) -> BaseLCM:
    file = golden("base_model")
    return _model(file.facts["config"], file.under(""))


def _model(config: dict[str, Any], state: dict[str, Tensor], **changes: Any) -> BaseLCM:
    ours = official_config(config, **changes)
    model = BaseLCM(ours)  # type: ignore[arg-type]
    model.load_state_dict(official_state(state))
    return model.eval()


def _documents(golden: Callable[[str], Any], supervised: bool = False) -> Batch:
    file = golden("base_losses")
    sources, targets = file.listed("source/"), file.listed("target/")
    if not supervised:
        return Batch.of(sources)
    pairs = zip(sources, targets, strict=True)
    return Batch.of([torch.cat(pair) for pair in pairs], [len(source) for source in sources])


def test_forward_and_every_intermediate(model: BaseLCM, golden: Callable[[str], Any]) -> None:
    file = golden("base_forward")
    real = file["padding_mask"]
    batch = Batch(file["seqs"], file["seq_lens"])
    assert torch.equal(batch.learned(), real)
    seen = _watch(
        model,
        {
            "frontend": "frontend_out",
            "lcm.layers.0.self_attn": "layer0_self_attn_out",
            "lcm.layers.0.ffn": "layer0_ffn_out",
            "lcm.layers.0": "layer0_out",
            "lcm.layers.1": "layer1_out",
            "lcm.layers.2": "layer2_out",
            "lcm": "decoder_out",
        },
    )
    x_BSD = model.normalizer.normalize(batch.concepts_BSD)
    out_BSD = model(x_BSD)
    seen["normalized"] = x_BSD
    seen["forward_out_normalized_space"] = out_BSD
    seen["predict_next_sentence_out"] = model.normalizer.denormalize(out_BSD)
    for name, tensor in seen.items():
        file.check(name, tensor, real, additions(model))


def _watch(model: torch.nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """Collect the outputs of modules, under other names."""
    seen: dict[str, Tensor] = {}
    for module, key in names.items():
        model.get_submodule(module).register_forward_hook(
            lambda _, __, out, key=key: seen.__setitem__(key, out.detach())
        )
    return seen


def test_alone_and_step_by_step(model: BaseLCM, golden: Callable[[str], Any]) -> None:
    file = golden("base_forward")
    x_BSD = model.normalizer.normalize(file["seqs"][1:2])
    file.check("forward_nopad_doc1", model(x_BSD), terms=additions(model))
    cache = KeyValueCache(3, rows=1, capacity=9)
    parts = []
    for part in torch.split(x_BSD, [4, 1, 1, 1, 1, 1], dim=1):
        parts.append(model(part, cache))
        cache.advance(part.shape[1])
    file.check("forward_incremental_doc1", torch.cat(parts, dim=1), terms=additions(model))


@pytest.mark.parametrize("case", CASES)
def test_loss(golden: Callable[[str], Any], case: str) -> None:
    """The official reductions are our sum and mean; the official mask marks our targets."""
    file, weights = golden("base_losses"), golden("base_model")
    facts = next(entry for entry in file.facts["cases"] if entry["key"] == case)
    objective = SquaredError(root="rmse1" in case, min_context=int(case[-1]))
    model = _model(weights.facts["config"], weights.under(""), objective=objective)
    batch = _documents(golden, supervised="target" in case)
    loss = model.loss(batch)
    value = loss.mean if "_mean_" in case else loss.value
    terms = 2 * additions(model)  # forward and backward
    file.check(f"loss/{case}", value.detach(), terms=terms)
    file.check(f"target_mask/{case}", batch.learned(first=objective.min_context))
    assert loss.targets == facts["num_target_elements"]
    value.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = (
        torch.nn.utils.get_total_norm(gradients)
        if hasattr(torch.nn.utils, "get_total_norm")
        else torch.stack([g.norm() for g in gradients]).norm()
    )
    assert norm.item() == pytest.approx(facts["grad_norm"], rel=rounding(terms))
    for key in [key for key in file.tensors if key.startswith(f"grad/{case}/")]:
        ours = model.get_parameter(key.removeprefix(f"grad/{case}/")).grad
        file.check(key, ours, terms=terms)


def _terms(model: BaseLCM, step: int) -> int:
    """Return the number of additions, forward and backward, in `step` training steps."""
    return 2 * step * additions(model)


def test_eight_training_steps(golden: Callable[[str], Any]) -> None:
    file, weights = golden("base_train8_final_weights"), golden("base_model")
    model = _model(weights.facts["config"], weights.under(""))
    batch = _documents(golden)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1
    )
    for number, step in enumerate(file.facts["log"], 1):
        for group in optimizer.param_groups:
            group["lr"] = step["lr_used"]
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rel = rounding(_terms(model, number))
        assert loss.value.item() == pytest.approx(step["loss_sum"], rel=rel)
        assert loss.targets == step["num_targets"]
        assert norm.item() == pytest.approx(step["grad_norm"], rel=rel)
    for key in file.tensors:
        file.check(key, model.get_parameter(key).detach(), terms=_terms(model, number))


class _SameBatch:
    """Data that gives every step the same documents."""

    summary = "the same documents"

    def __init__(self, documents: Batch) -> None:
        self.documents = documents

    def batch(self, number: int) -> Batch:
        return self.documents

    def micro_batches(self, number: int, share: Share) -> MicroBatches:
        own = share.rows(self.documents.lengths_B.tolist())
        return MicroBatches([self.documents.rows(rows) for rows in own], self.documents.lengths_B)

    def validation(self, limit: int) -> list[Batch]:
        return []


@pytest.mark.parametrize("parts", [1, 2])
def test_eight_steps_of_our_trainer(golden: Callable[[str], Any], parts: int) -> None:
    """Schedule, clipping and the division by the number of targets are those of `lcm train`."""
    file, weights = golden("base_train8_final_weights"), golden("base_model")
    config = weights.facts["config"]
    model = _model(config, weights.under(""))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    options = Training(
        steps=9,  # the official cosine takes one step more than its maximum of 8
        learning_rate=1e-3, warmup=3, initial_rate=1e-7, final_rate=1e-5, clip=1.0,
        betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1, accumulate=parts,
    )  # fmt: skip
    trainer = ModelTrainer(model, _SameBatch(_documents(golden)), options)
    for number, step in enumerate(file.facts["log"], 1):
        done, rel = trainer.train_step(), rounding(_terms(model, number))
        assert done["lr"] == pytest.approx(step["lr_used"], rel=1e-9)
        assert done["loss"] == pytest.approx(step["loss_sum"] / step["num_targets"], rel=rel)
        assert done["grad_norm"] == pytest.approx(step["grad_norm"], rel=rel)
    for key in file.tensors:
        file.check(key, model.get_parameter(key).detach(), terms=_terms(model, number))


@pytest.mark.parametrize(
    "variant",
    [
        "learned_relu_std",
        "sine_gelu_normformer_qknorm",
        "post_unit_wnorm",
        "rope_scale_residual_finalpost",
    ],
)
def test_architecture_variants(golden: Callable[[str], Any], variant: str) -> None:
    file = golden("base_variants")
    model = _model(file.facts[variant]["config"], file.under(f"{variant}/sd/"))
    batch = Batch(file["seqs"], file["seq_lens"])
    out_BSD = model(batch.concepts_BSD)
    file.check(f"{variant}/out", out_BSD, batch.learned(), additions(model))


def test_nothing_is_left_out(assert_complete: Callable[[list[str], int], None]) -> None:
    assert_complete(FILES, COMPARED)
