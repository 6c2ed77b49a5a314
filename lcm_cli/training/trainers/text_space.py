"""Train or finetune a space: an encoder and a decoder that share one concept vector.

Every step takes pairs of translations (a, b). Both are encoded; each concept, with added noise, is
decoded into a or b at random (auto-encoding and translation). The two concepts are pulled together
and, if the recipe says so, pushed apart from those of other sentences. The noise makes predicted
concepts, which are never exact, decode well (Large Concept Models, section 2.5.2). Sentences
without a translation are paired arbitrarily, and only decoded into themselves.

Shapes: N pairs, R = 2 N rows, T tokens of the packed batch, D concept dim.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lcm_cli.errors import IntegrityError
from lcm_cli.hub.locate import AdapterConfig
from lcm_cli.space import Space, load_space
from lcm_cli.space.decoder import TextDecoder
from lcm_cli.space.encoder import TextEncoder
from lcm_cli.space.tokenizer import Tokenizer
from lcm_cli.training.adapting import add_adapters
from lcm_cli.training.data.parallel_text import (
    NONE,
    Pairs,
    ParallelText,
    Room,
    human,
    read_translations,
    shifted,
)
from lcm_cli.training.data_options import as_data_set
from lcm_cli.training.optim import sizes
from lcm_cli.training.recipes.space import SpaceRecipe
from lcm_cli.training.trainers.concept_loss import TEMPERATURE
from lcm_cli.training.trainers.pair_trainer import PairTrainer
from lcm_cli.training.trainers.space_folder import StateDict, save_adapter, save_space
from lcm_cli.training.trainers.space_parts import (
    new_networks,
    set_dropout,
    train_tokenizer,
    trainable,
)
from lcm_cli.training.trainers.token_loss import token_cross_entropy

DECODER = ("decoder.layers.*",)  # adapted by default: the concepts stay those of the base


class SpaceTrainer(PairTrainer):
    """An encoder and a decoder that learn one space."""

    parts = ("loss", "align", "contrast")

    def __init__(
        self,
        recipe: SpaceRecipe,
        tokenizer_path: Path,
        networks: tuple[TextEncoder, TextDecoder],
        data: ParallelText,
        dev: Sequence[Mapping[str, str]] = (),
        start: Space | None = None,
        adapter: AdapterConfig | None = None,
    ) -> None:
        self.encoder, self.decoder = networks
        self.tokenizer_path, self._start = tokenizer_path, start
        both = {"encoder": self.encoder, "decoder": self.decoder}
        super().__init__(recipe, both, data, dev, adapter)

    def whole(self, losses: tuple[Tensor, ...]) -> Tensor:
        """Return the weighted sum of the losses."""
        return losses[0] + self.options.align * losses[1] + self.options.contrast * losses[2]

    def losses(self, pairs: Pairs, room: Room | None = None) -> tuple[Tensor, ...]:
        """Return the mean cross-entropy per token, and the alignment and contrast of the pairs."""
        with self._fast_math():
            rows, order_R = self.data.rows(pairs.sides(), room)
            concepts_RD = unsorted(self.encoder.encode(rows), order_R).float()
            present_R = (pairs.sides()[:, 0] != NONE)[:, None].float()
            # Noise and distances are measured in the concepts' own spread, which changes as the
            # encoder learns; no gradient flows through it.
            sigma_D = _variance(concepts_RD.detach(), present_R).sqrt()
            noisy_RD = self._with_noise(concepts_RD, sigma_D)
            token_loss = self._decoding_loss(noisy_RD, pairs.targets(), room)
            a_ND, b_ND = concepts_RD.chunk(2)
            align = _alignment(a_ND, b_ND, pairs.aligned_N, sigma_D)
            # A pair has both sides or, in padding, neither.
            contrast = _contrast(a_ND, b_ND, pairs.aligned_N, present_R.chunk(2)[0])
        return token_loss, align, contrast

    def _with_noise(self, concepts_RD: Tensor, sigma_D: Tensor) -> Tensor:
        size_R1 = torch.rand_like(concepts_RD[:, :1]) * self.options.noise
        return concepts_RD + torch.randn_like(concepts_RD) * size_R1 * sigma_D

    def _decoding_loss(self, concepts_RD: Tensor, targets_R2: Tensor, room: Room | None) -> Tensor:
        """Return the mean cross-entropy per token; the language token is not predicted."""
        rows, order_R = self.data.rows(targets_R2, room)
        rows, wanted_T = shifted(rows, len(targets_R2))
        # Spare rows need concepts, too: zeros.
        spare = len(rows.starts_R1) - 1 - len(targets_R2)
        hidden_TM = self.decoder.decode(
            functional.pad(concepts_RD[order_R], (0, 0, 0, spare)), rows
        )
        if room is None:  # with room, the number of tokens kept would not be known on the host
            kept = (wanted_T != NONE).nonzero().flatten()
            hidden_TM, wanted_T = hidden_TM[kept], wanted_T[kept]
        total, _ = token_cross_entropy(
            self.decoder,
            hidden_TM,
            wanted_T,
            self.options.smoothing,
            compiled=room is not None and self.options.compile,
        )
        return total / (wanted_T != NONE).sum()

    def export(self, folder: Path) -> Path:
        """Write the space to `folder`/space, or its adapters; a new space is centred.

        A network of which nothing is trained keeps its file.
        """
        source = {"trained_by": "lcm train", "steps": self.step, "sentences": self.sentences}
        configs, path = (self.encoder.config, self.decoder.config), folder / "space"
        networks = self.networks.values()
        if self.adapter:
            with self.average.used(networks):
                save_adapter(path, self.recipe, networks, configs, source, self.adapter)
            return path
        states: dict[str, StateDict | Path]
        with self.average.used(networks):
            encoder, decoder = self.encoder.state_dict(), self.decoder.state_dict()
            if self._start is None:  # a finetuned space keeps its offset
                center(encoder, decoder, self._mean_concept())
            states = {"encoder": encoder, "decoder": decoder}
        for name, network in self.networks.items():
            # Rounding it would change the concepts, and with them the fingerprint.
            if self._start and not self._start.files.adapter and sizes(network)[1] == 0:
                states[name] = getattr(self._start.files, name)
        return save_space(path, self.recipe, states, configs, self.tokenizer_path, source)

    @torch.no_grad()
    def _mean_concept(self, batches: int = 8) -> Tensor:
        """Return the mean concept (D,) of a few batches of the training data."""
        o = self.options
        pairs, found = self.data.epoch(o.seed, 0, o.batch_tokens, join=0.0, translate=0.0)
        rows = (self.data.rows(pairs[batch].sides())[0] for batch in found[:batches])
        with _uncompiled(self._room is not None and o.compile):
            return torch.cat([self.encoder.encode(some) for some in rows]).mean(dim=0)


def _uncompiled(compiled: bool) -> AbstractContextManager[None]:
    """Return a context in which compiled layers run as they are, for batches of other shapes.

    Before torch 2.6 there is none: they are compiled again, for some of these shapes.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    return set_stance("force_eager") if compiled and set_stance else nullcontext()


def unsorted(x_RD: Tensor, order_R: Tensor) -> Tensor:
    """Put rows, the i-th of which is number order_R[i], in order; drop spare rows at the end."""
    own_RD = x_RD[: len(order_R)]
    return torch.empty_like(own_RD).index_copy(0, order_R, own_RD)


def _variance(x_RD: Tensor, present_R1: Tensor) -> Tensor:
    """Return the variance (D,) of the rows that are present."""
    count = present_R1.sum()
    mean_D = (x_RD * present_R1).sum(dim=0) / count
    return ((x_RD - mean_D).square() * present_R1).sum(dim=0) / count


def _alignment(a_ND: Tensor, b_ND: Tensor, aligned_N: Tensor, sigma_D: Tensor) -> Tensor:
    """Return the mean squared distance of translations, in units of twice the variance."""
    # Twice the variance is the expected squared distance of two unrelated concepts.
    distance_N = (a_ND - b_ND).square().mean(dim=1) * aligned_N
    return distance_N.sum() / aligned_N.sum().clamp(min=1) / (2 * sigma_D.square().mean() + 1e-8)


def _contrast(a_ND: Tensor, b_ND: Tensor, aligned_N: Tensor, present_N1: Tensor) -> Tensor:
    """Return the mean cross-entropy of finding each translation in the batch by cosine.

    This is InfoNCE in both directions (LaBSE: Feng et al. 2022, without their margin).
    """
    logits_NN = (functional.normalize(a_ND) @ functional.normalize(b_ND).T).float() / TEMPERATURE
    present_NN = present_N1.bool() & present_N1.bool().T
    # Empty pairs keep their diagonal, since a row of -inf alone would give NaN.
    absent_NN = ~present_NN & ~torch.eye(len(a_ND), dtype=torch.bool, device=a_ND.device)
    logits_NN = logits_NN.masked_fill(absent_NN, -torch.inf)
    wanted_N = torch.arange(len(a_ND), device=a_ND.device)
    there_N = functional.cross_entropy(logits_NN, wanted_N, reduction="none")
    back_N = functional.cross_entropy(logits_NN.T, wanted_N, reduction="none")
    return ((there_N + back_N) * aligned_N).sum() / (2 * aligned_N.sum().clamp(min=1))


def make_space_trainer(recipe: SpaceRecipe, folder: Path, device: torch.device) -> SpaceTrainer:
    """Prepare a run in `folder`: tokenizer, networks, data. Raises LcmErrors of all three.

    A resumed run keeps its own tokenizer. Adapters use that of their base.
    """
    sets = [text_set(entry) for entry in recipe.data.train]
    tokenizer_path = folder / "tokenizer.model"
    start = load_space(recipe.start, device="cpu", precision="float32") if recipe.start else None
    if start is not None:
        recipe = replace(recipe, languages=start.languages, licence=recipe.licence or start.licence)
        if recipe.adapter:
            tokenizer_path = start.files.tokenizer
        else:
            shutil.copyfile(start.files.tokenizer, tokenizer_path)
        networks = trainable(start)
    # The tokenizer of a resumed run stays: a new one could number its pieces in another way.
    elif not tokenizer_path.is_file():
        lines = chain.from_iterable(read_translations(path) for path, _ in sets)
        train_tokenizer(tokenizer_path, map(human, lines), recipe.shape.vocabulary)
    tokenizer = Tokenizer(tokenizer_path, recipe.languages)
    if start is None:
        networks = new_networks(recipe.shape, tokenizer.vocabulary, recipe.train.seed)
    adapter = None
    if start is not None and recipe.adapter:
        options, seed = recipe.adapter, recipe.train.seed
        adapter = add_adapters(networks, options, recipe.start, start.files, seed, DECODER)
    for network in networks:
        network.to(device)
        set_dropout(network, recipe.train.dropout)
    longest = min(network.config.max_length for network in networks)
    data = ParallelText(
        ((read_translations(path), weight) for path, weight in sets),
        tokenizer,
        min(recipe.train.max_tokens, longest),
        longest,
        device,
    )
    return SpaceTrainer(recipe, tokenizer_path, networks, data, dev_lines(recipe), start, adapter)


def dev_lines(recipe: SpaceRecipe) -> list[dict[str, str]]:
    """Return the lines of a recipe's dev data, with the first sentence of each language."""
    lines = chain.from_iterable(read_translations(Path(p)) for p in recipe.data.dev)
    return [{code: texts[0] for code, texts in human(line).items()} for line in lines]


def text_set(entry: str) -> tuple[Path, float]:
    """Return the file and the weight of a data entry, PATH[:WEIGHT].

    Raises IntegrityError for an entry with a split, since text has none.
    """
    found = as_data_set(entry)
    if found.split:
        raise IntegrityError(f"{entry}: text has no splits", "an entry is PATH[:WEIGHT]")
    return Path(found.path), found.weight


def center(encoder: StateDict, decoder: StateDict, offset_D: Tensor) -> None:
    """Move the concepts' common offset from the encoder's last bias into the decoder, in place.

    Decoded texts stay exactly the same. A large common offset, which nothing in training prevents,
    would make the cosine of any two concepts almost 1, and cost digits in half precision.
    """
    # Cross-attention to the single vector c is W c + b: (c - offset) needs b + W offset.
    encoder["layer_norm.bias"] = encoder["layer_norm.bias"] - offset_D
    for key in [key for key in decoder if key.endswith("encoder_decoder_attn.v_proj.bias")]:
        weight = decoder[key.replace(".bias", ".weight")]
        decoder[key] = decoder[key] + weight @ offset_D
