"""Train or finetune a space: an encoder and a decoder that share one concept vector.

Every step takes pairs of translations (a, b). Both are encoded; each concept, with added noise, is
decoded into a or b at random (auto-encoding and translation). The two concepts are pulled together
and, if the recipe says so, pushed apart from those of other sentences. The noise makes predicted
concepts, which are never exact, decode well (Large Concept Models, section 2.5.2). Sentences
without a translation are paired arbitrarily, and only decoded into themselves.

Shapes: N pairs, R = 2 N rows, T tokens of the packed batch, D concept dim.
"""

import io
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lcm_cli.errors import IntegrityError
from lcm_cli.evaluation.space_quality import evaluate_space
from lcm_cli.files import atomic_path
from lcm_cli.hub.locate import AdapterConfig
from lcm_cli.space import Space, load_space
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.kernel_check import check_row_kernel
from lcm_cli.space.loading import load_weights
from lcm_cli.space.tokenizer import Tokenizer
from lcm_cli.space.transformer import Stack, row_kernel
from lcm_cli.training.adapting import (
    add_adapters,
    base_of,
    check_base,
    restore_trained,
    trained_state,
)
from lcm_cli.training.data.parallel_text import (
    NONE,
    Pairs,
    ParallelText,
    Room,
    Translations,
    human,
    read_translations,
    shifted,
)
from lcm_cli.training.data_options import as_data_set
from lcm_cli.training.optim import (
    freeze,
    learning_rate,
    make_optimizers,
    set_rate,
    sizes,
    split_parameters,
    trained_share,
)
from lcm_cli.training.parallel import World
from lcm_cli.training.recipes.space import SpaceRecipe, SpaceShape
from lcm_cli.training.trainers.averaging import AveragedWeights
from lcm_cli.training.trainers.concept_loss import TEMPERATURE
from lcm_cli.training.trainers.cuda_graph import CapturedStep
from lcm_cli.training.trainers.space_folder import StateDict, save_adapter, save_space
from lcm_cli.training.trainers.token_loss import short_rows, token_cross_entropy
from lcm_cli.weights import rounded

DECODER = ("decoder.layers.*",)  # adapted by default: the concepts stay those of the base
TOKENIZER_SENTENCES = 60_000  # per language; more change the tokenizer little


class PairTrainer(ABC):
    """Networks trained on pairs of sentences; `step` counts the batches done.

    `parts` names the losses that the subclass computes. With `adapter`, which describes the
    adapters of the networks, states and checkpoints hold these alone.
    """

    parts: tuple[str, ...]
    unit = "sentences"
    sample_every = 0
    keep = 2
    patience = 0
    world = World()
    peak_flops: float | None = None

    def __init__(
        self,
        recipe: SpaceRecipe,
        networks: Mapping[str, nn.Module],
        data: ParallelText,
        dev: Sequence[Mapping[str, str]],
        adapter: AdapterConfig | None = None,
    ) -> None:
        self.recipe, self.adapter = recipe, adapter
        self.options = recipe.train
        self.networks = networks
        self.data, self.dev = data, dev
        self.device = data.device
        check_row_kernel(self.device)
        self.step = self.sentences = 0
        self.steps, self.save_every = self.options.steps, self.options.save_every
        self.eval_every = self.options.eval_every
        self._epoch, self._first = -1, 0
        self._pairs: Pairs | None = None
        self._batches: list[slice] = []
        module = nn.ModuleDict(networks)  # as one, since parameters that they share count once
        freeze(module, self.options.freeze)
        self.sizes = sizes(module)
        matrices, others = split_parameters(networks.values())
        self.optimizers = make_optimizers(matrices, others, self.options)
        self.parameters = matrices + others
        # Frozen matrices are rounded as well when the space is stored.
        self._stored = [p for p in module.parameters() if p.dim() == 2]
        if adapter or self.options.store != "int8":
            self._stored = []
        self.average = AveragedWeights(self.parameters, self.options.ema)
        self._room: Room | None = None
        self._captured = CapturedStep(self._learn)

    @property
    def summary(self) -> str:
        """Size of the networks and of the data, in one line."""
        left_out = self.data.skipped
        skipped = f"; {left_out} sentences over {self.options.max_tokens} tokens are left out"
        return (
            f"{self.sizes[0] / 1e6:.1f} M parameters{trained_share(*self.sizes)}, "
            f"{len(self.data)} lines of text{skipped if left_out else ''}"
        )

    def train_step(self) -> dict[str, Any]:
        """Do one optimizer step; return its losses and the number of sentences.

        On a GPU the losses are tensors that may not have been computed yet.
        """
        batch, o = self._batch(), self.options
        rate = learning_rate(self.step, o.steps, o.learning_rate, o.warmup, o.decay)
        for optimizer in self.optimizers:
            set_rate(optimizer, rate)
        # Noise and dropout depend on seed and step alone, so that a resumed run draws the same.
        torch.manual_seed(int(np.random.default_rng([o.seed, self.step]).integers(1 << 62)))
        if self._room is None:
            found = self._learn(batch.sentences_N4, batch.aligned_N, batch.swap_N2)
        else:
            full = batch.padded(self._room.pairs)
            found = self._captured(full.sentences_N4, full.aligned_N, full.swap_N2)
        self.average.follow(self.step)
        self.step += 1
        self.sentences += 2 * len(batch)
        losses = found.unbind() if found.is_cuda else found.tolist()
        names = (*self.parts, "grad_norm")
        return dict(zip(names, losses, strict=True)) | {"lr": rate, "sentences": 2 * len(batch)}

    def _learn(self, sentences_N4: Tensor, aligned_N: Tensor, swap_N2: Tensor) -> Tensor:
        """Do the device's part of a step; return the losses and the gradient norm."""
        with self._rounded():
            losses = self.losses(Pairs(sentences_N4, aligned_N, swap_N2), self._room)
            self.whole(losses).backward()
        # The matrices are exact again: it is these that the gradients of the rounded ones change.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([*(loss.detach() for loss in losses), norm])

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        """Compute with the matrices as they will be stored; restore the exact ones afterwards."""
        exact = [matrix.detach().clone() for matrix in self._stored]
        with torch.no_grad():
            for matrix in self._stored:
                matrix.copy_(rounded(matrix))
        try:
            yield
        finally:
            with torch.no_grad():
                for matrix, own in zip(self._stored, exact, strict=True):
                    matrix.copy_(own)

    @abstractmethod
    def losses(self, pairs: Pairs, room: Room | None = None) -> tuple[Tensor, ...]:
        """Return the losses of a batch, in the order of `parts`.

        With `room` the batch is padded to these sizes, and nothing waits for the device; the losses
        are the same. Padding is for CUDA graphs; elsewhere it only adds work.
        """

    @abstractmethod
    def whole(self, losses: tuple[Tensor, ...]) -> Tensor:
        """Return the weighted sum of the losses."""

    @abstractmethod
    def export(self, folder: Path) -> Path:
        """Write the space to `folder`/space."""

    def _batch(self) -> Pairs:
        """Return the batch of the current step; begins the next epoch when one ends."""
        while self._pairs is None or self.step >= self._first + len(self._batches):
            if self._pairs is not None:
                self._first += len(self._batches)
            self._open_epoch(self._epoch + 1)
        return self._pairs[self._batches[self.step - self._first]]

    def _open_epoch(self, number: int) -> None:
        o = self.options
        self._epoch = number
        self._pairs, self._batches = self.data.epoch(
            o.seed, number, o.batch_tokens, join=o.join, translate=o.translate
        )
        if not self._captures():
            return
        room = self.data.room(self._batches, o.batch_tokens)
        # A larger room means other shapes, so the step must be captured again.
        if self._room is None or room.pairs > self._room.pairs:
            if self._room is None and self.options.compile:
                self._compile()
            self._room, self._captured = room, CapturedStep(self._learn)

    def _compile(self) -> None:
        """Compile each layer, for captured steps: these always have the same shapes."""
        for network in self.networks.values():
            for stack in network.modules():
                if isinstance(stack, Stack):
                    for layer in stack.layers:
                        layer.compile(dynamic=False)

    def _captures(self) -> bool:
        """Return whether steps are captured: where attention within packed rows is one kernel."""
        dtype = torch.bfloat16 if self.options.precision == "bfloat16" else torch.float32
        configs: list[Any] = [network.config for network in self.networks.values()]
        sizes = {config.model_dim // config.heads for config in configs}
        return all(row_kernel(self.device, dtype, size) is not None for size in sizes)

    @contextmanager
    def _fast_math(self) -> Iterator[None]:
        lower = self.options.precision == "bfloat16"
        # Each weight is used once per step, so caching its bfloat16 copy gains nothing.
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=lower, cache_enabled=False
        )
        with short_rows(self.device), autocast:
            yield

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to continue exactly.

        Batches and noise are functions of the seed, the epoch and the step.
        """
        return {
            "step": self.step,
            "sentences": self.sentences,
            "epoch": self._epoch,
            "first": self._first,
            **{name: trained_state(net, self.adapter) for name, net in self.networks.items()},
            "base": base_of(self.adapter),
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def shards(self) -> None:
        """Return None: one process trains a space, so nothing is sharded."""
        return None

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Restore `state`. Raises ValueError if `ema` was switched, or the base has changed."""
        self.average.check(state["average"])
        check_base(state, self.adapter)
        for name, network in self.networks.items():
            restore_trained(network, state[name], self.adapter)
        self.average.restore(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # the tensor on this device that a captured step reads
        self.step, self.sentences = state["step"], state["sentences"]
        # Captured again: the graph reads tensors that have just been replaced.
        self._first, self._captured = state["first"], CapturedStep(self._learn)
        if state["epoch"] >= 0:
            self._open_epoch(state["epoch"])

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Export the space, and score the exported one on the recipe's dev data."""
        space = load_space(str(self.export(folder)), device=str(self.device))
        if not self.dev:
            return {}
        quality = evaluate_space(space, self.dev, limit=self.options.eval_sentences)
        return {"eval": quality.means(), "by_language": asdict(quality)}

    def sample(self) -> dict[str, Any]:
        """Return nothing: a space is judged by its scores, not by samples."""
        return {}


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


def set_dropout(network: nn.Module, share: float) -> None:
    """Set the dropout probability of all layers."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def trainable(space: Space) -> tuple[TextEncoder, TextDecoder]:
    """Return trainable copies of a space's networks, in float32."""
    files, config = space.files, space.files.config
    encoder, decoder = (
        EncoderConfig(**config["encoder"]),
        DecoderConfig(**config["decoder"]),
    )
    cpu = torch.device("cpu")
    networks = (
        load_weights(TextEncoder, encoder, files.encoder, cpu, torch.float32, files.adapter),
        load_weights(TextDecoder, decoder, files.decoder, cpu, torch.float32, files.adapter),
    )
    for network in networks:
        for p in network.parameters():
            p.data = p.data.clone()  # detach from the memory-mapped file
        network.requires_grad_(True).train()
    return networks


def new_networks(shape: SpaceShape, vocabulary: int, seed: int) -> tuple[TextEncoder, TextDecoder]:
    """Return newly initialised networks, which share one embedding if `shape.tie`."""
    common = (shape.dim, shape.heads, shape.ffn_dim, vocabulary)
    encoder = TextEncoder(EncoderConfig(shape.encoder_layers, *common, shape.max_length))
    # Training does not predict the language token (`shifted`), so its probability means nothing.
    config = DecoderConfig(
        shape.decoder_layers, *common, shape.dim, shape.max_length, scores_language=False
    )
    decoder = TextDecoder(config)
    initialize((encoder, decoder), seed)
    if shape.tie:
        decoder.decoder_frontend.embed = encoder.encoder_frontend.embed
    return encoder, decoder


def initialize(networks: Iterable[nn.Module], seed: int) -> None:
    """Initialise networks: matrices by Xavier, embeddings by a normal of variance 1 / dim."""
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)


def train_tokenizer(path: Path, lines: Iterable[Translations], vocabulary: int) -> None:
    """Train a sentencepiece model on the sentences of `lines`, with equal weight per language.

    Raises IntegrityError if there is too little text for that many pieces.
    """
    import sentencepiece

    texts: dict[str, list[str]] = {}
    for line in lines:
        for code, found in line.items():
            texts.setdefault(code, []).extend(found)
    most = min(max(len(t) for t in texts.values()), TOKENIZER_SENTENCES) if texts else 0
    balanced = [t for _, all_ in sorted(texts.items()) for t in islice(cycle(all_), most)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(balanced),
            model_writer=model,
            vocab_size=vocabulary,
            character_coverage=0.9999,
            hard_vocab_limit=False,  # little text yields fewer pieces
            byte_fallback=True,  # any text can be encoded, if need be as bytes
            unk_id=0,  # the ids of SONAR's model, to which Tokenizer adds 1
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        hint = "set a smaller shape.vocabulary, or add text"
        raise IntegrityError(f"no tokenizer of {vocabulary} pieces: {error}", hint) from error
    with atomic_path(path, force=True) as temporary:
        temporary.write_bytes(model.getvalue())


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
