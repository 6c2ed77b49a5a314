"""Train or finetune a space: an encoder and a decoder that share one concept vector.

Every step takes pairs of translations (a, b). Both are encoded; each concept, with noise, must be
decoded into a or b at random (auto-encoding and translation), and the two concepts are pulled
together and, if the recipe says so, apart from those of other sentences. The noise makes predicted
concepts, which are never exact, decode well (Large Concept Models, section 2.5.2).

Shapes: N pairs, R = 2 N rows, T tokens of the packed batch, D concept dim.
"""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lcm_cli.errors import IntegrityError
from lcm_cli.evaluation.space import evaluate_space
from lcm_cli.files import atomic_path
from lcm_cli.space import Space, load_space
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.tokenizer import Tokenizer
from lcm_cli.space.weights import load_weights
from lcm_cli.training.optim import learning_rate, make_optimizers, split_parameters
from lcm_cli.training.parallel import World
from lcm_cli.training.parallel_text import (
    Example,
    Item,
    ParallelText,
    Translations,
    read_translations,
)
from lcm_cli.training.recipe import SpaceRecipe, SpaceShape
from lcm_cli.training.token_loss import decoding_loss, short_rows

State = dict[str, Tensor]

TOKENIZER_SENTENCES = 60_000  # a language; more changes little


class SpaceTrainer:
    """Networks, optimizers and data of one run. `step` batches are done."""

    unit = "sentences"
    sample_every = 0
    keep = 2
    patience = 0
    world = World()
    peak_flops: float | None = None

    def __init__(
        self,
        recipe: SpaceRecipe,
        tokenizer_path: Path,
        networks: tuple[TextEncoder, TextDecoder],
        data: ParallelText,
        dev: Sequence[Translations] = (),
    ) -> None:
        self.recipe = recipe
        self.options = recipe.train
        self.encoder, self.decoder = networks
        self.tokenizer_path = tokenizer_path
        self.data, self.dev = data, dev
        self.step = self.sentences = 0
        self.steps, self.save_every = self.options.steps, self.options.save_every
        self.eval_every = self.options.eval_every
        self._epoch, self._first, self._batches = -1, 0, list[list[Item]]()
        matrices, others = split_parameters(networks)
        self.optimizers = make_optimizers(matrices, others, self.options)
        self.parameters = matrices + others

    @property
    def summary(self) -> str:
        """What is trained, on what, in one line."""
        size, left_out = sum(p.numel() for p in self.parameters), self.data.skipped
        skipped = f"; {left_out} sentences over {self.options.max_tokens} tokens are left out"
        return (
            f"{size / 1e6:.1f} M parameters, {len(self.data)} lines of text"
            f"{skipped if left_out else ''}"
        )

    def train_step(self) -> dict[str, float]:
        """Do one optimizer step; returns its losses and the number of sentences."""
        examples = [self.data.example(item) for item in self._batch()]
        rng = np.random.default_rng([self.options.seed, 1, self.step])
        with self._fast_math():
            token_loss, align_loss, contrast_loss = self._losses(examples, rng)
        o = self.options
        (token_loss + o.align * align_loss + o.contrast * contrast_loss).backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, o.clip)
        rate = learning_rate(self.step, o.steps, o.learning_rate, o.warmup, o.decay)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.sentences += 2 * len(examples)
        return {
            "loss": token_loss.item(),
            "align": align_loss.item(),
            "contrast": contrast_loss.item(),
            "grad_norm": norm.item(),
            "lr": rate,
            "sentences": 2 * len(examples),
        }

    def _losses(
        self, examples: list[Example], rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        left, right = [e.left for e in examples], [e.right for e in examples]
        concepts_RD = self.encoder(left + right).float()
        a_ND, b_ND = concepts_RD.chunk(2)
        variance_D = concepts_RD.detach().var(dim=0, correction=0)
        align = ((a_ND - b_ND) ** 2).mean() / (2 * variance_D.mean() + 1e-8)
        noisy_RD = self._with_noise(concepts_RD, variance_D.sqrt(), rng)
        swap = rng.random(len(examples)) < self.options.translate
        targets = [b if s else a for a, b, s in zip(left, right, swap, strict=True)]
        targets += [a if s else b for a, b, s in zip(left, right, swap, strict=True)]
        return self._decoding_loss(noisy_RD, targets), align, _contrast(a_ND, b_ND)

    def _with_noise(self, concepts_RD: Tensor, sigma_D: Tensor, rng: np.random.Generator) -> Tensor:
        size_R = rng.uniform(0.0, self.options.noise, len(concepts_RD)).astype(np.float32)
        noise = rng.standard_normal(concepts_RD.shape, dtype=np.float32) * size_R[:, None]
        return concepts_RD + torch.from_numpy(noise).to(concepts_RD.device) * sigma_D

    def _decoding_loss(self, concepts_RD: Tensor, targets: list[list[int]]) -> Tensor:
        """Mean cross entropy a token. The language token is given, not predicted."""
        order = sorted(range(len(targets)), key=lambda i: len(targets[i]))
        rows = [targets[i] for i in order]
        total, each_T = decoding_loss(self.decoder, concepts_RD[order], rows)
        return total / len(each_T)

    def _batch(self) -> list[Item]:
        """Return the batch of the current step; epochs follow each other."""
        while self.step >= self._first + len(self._batches):
            o = self.options
            self._first += len(self._batches)
            self._epoch += 1
            self._batches = self.data.batches(o.seed, self._epoch, o.batch_tokens, o.join)
        return self._batches[self.step - self._first]

    @contextmanager
    def _fast_math(self) -> Iterator[None]:
        device = self._device()
        lower = self.options.precision == "bfloat16"
        with short_rows(device), torch.autocast(device.type, torch.bfloat16, enabled=lower):
            yield

    def _device(self) -> torch.device:
        return self.encoder.layer_norm.weight.device

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to go on exactly here.

        Batches and noise are functions of the seed and the step, so the step stands for them.
        """
        return {
            "step": self.step,
            "sentences": self.sentences,
            "encoder": self.encoder.state_dict(),
            "decoder": self.decoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def shards(self) -> None:
        """Nothing is cut: one process trains a space."""

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Go back to where `state` was taken."""
        self.encoder.load_state_dict(state["encoder"])
        self.decoder.load_state_dict(state["decoder"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.sentences = state["step"], state["sentences"]
        self._epoch, self._first, self._batches = -1, 0, []

    def export(self, folder: Path) -> Path:
        """Write the space as it is, centred and in float16, into `folder`/space."""
        states = self.encoder.state_dict(), self.decoder.state_dict()
        if not self.recipe.start:  # a finetuned space stays where it was
            center(*states, self._mean_concept())
        source = {"trained_by": "lcm train", "steps": self.step, "sentences": self.sentences}
        configs = self.encoder.config, self.decoder.config
        path = folder / "space"
        return save_space(path, self.recipe, states, configs, self.tokenizer_path, source)

    @torch.no_grad()
    def _mean_concept(self, batches: int = 8) -> Tensor:
        """Return the mean concept (D,) of some of the training data."""
        o = self.options
        part = self.data.batches(o.seed, 0, o.batch_tokens, 0.0)[:batches]
        examples = [self.data.example(item) for batch in part for item in batch]
        rows = [row for e in examples for row in (e.left, e.right)]
        parts = (rows[i : i + 256] for i in range(0, len(rows), 256))
        return torch.cat([self.encoder(part) for part in parts]).mean(dim=0)

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Export, and measure what was exported on the recipe's dev data."""
        space = load_space(str(self.export(folder)), device=str(self._device()))
        if not self.dev:
            return {}
        quality = evaluate_space(space, self.dev, limit=self.options.eval_sentences)
        return {"eval": quality.means(), "by_language": asdict(quality)}

    def sample(self) -> dict[str, Any]:
        """Nothing: the scores tell more of a space than an example does."""
        return {}


def _contrast(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Mean cross entropy of finding each translation among all of the batch, by cosine.

    InfoNCE in both directions at a temperature of 0.05 (LaBSE: Feng et al. 2022, without margin).
    """
    logits_NN = (functional.normalize(a_ND) @ functional.normalize(b_ND).T).float() / 0.05
    wanted_N = torch.arange(len(a_ND), device=a_ND.device)
    there = functional.cross_entropy(logits_NN, wanted_N)
    return (there + functional.cross_entropy(logits_NN.T, wanted_N)) / 2


def make_trainer(recipe: SpaceRecipe, folder: Path, device: torch.device) -> SpaceTrainer:
    """Prepare a run in `folder`: tokenizer, networks, data. Raises LcmErrors of all three.

    A tokenizer that the run already has is kept, so that a resumed run goes on with its own.
    """
    train = [Path(p) for p in recipe.data.train]
    tokenizer_path = folder / "tokenizer.model"
    start = load_space(recipe.start, device="cpu", precision="float32") if recipe.start else None
    if start is not None:
        recipe = replace(recipe, languages=start.languages, licence=recipe.licence or start.licence)
        shutil.copyfile(start.files.tokenizer, tokenizer_path)
        networks = trainable(start)
    elif not tokenizer_path.is_file():
        train_tokenizer(tokenizer_path, read_translations(train), recipe.shape.vocabulary)
    tokenizer = Tokenizer(tokenizer_path, recipe.languages)
    if start is None:
        networks = new_networks(recipe.shape, tokenizer.vocabulary, recipe.train.seed)
    for network in networks:
        network.to(device)
    data = ParallelText(read_translations(train), tokenizer, recipe.train.max_tokens)
    dev = list(read_translations([Path(p) for p in recipe.data.dev]))
    return SpaceTrainer(recipe, tokenizer_path, networks, data, dev)


def trainable(space: Space) -> tuple[TextEncoder, TextDecoder]:
    """Return copies of a space's networks that own their weights and take gradients."""
    config = space.files.config
    encoder, decoder = (
        EncoderConfig(**config["encoder"]),
        DecoderConfig(**config["decoder"]),
    )
    cpu = torch.device("cpu")
    networks = (
        load_weights(TextEncoder, encoder, space.files.encoder, cpu, torch.float32),
        load_weights(TextDecoder, decoder, space.files.decoder, cpu, torch.float32),
    )
    for network in networks:
        for p in network.parameters():
            p.data = p.data.clone()  # off the memory-mapped file
        network.requires_grad_(True).train()
    return networks


def new_networks(shape: SpaceShape, vocabulary: int, seed: int) -> tuple[TextEncoder, TextDecoder]:
    """Return freshly initialised networks, with one embedding for both if `shape.tie`."""
    common = (shape.dim, shape.heads, shape.ffn_dim, vocabulary)
    encoder = TextEncoder(EncoderConfig(shape.encoder_layers, *common, shape.max_length))
    decoder = TextDecoder(
        DecoderConfig(shape.decoder_layers, *common, shape.dim, max_length=shape.max_length)
    )
    initialize(encoder, decoder, seed)
    if shape.tie:
        decoder.decoder_frontend.embed = encoder.encoder_frontend.embed
    return encoder, decoder


def initialize(encoder: TextEncoder, decoder: TextDecoder, seed: int) -> None:
    """Fill new networks: Xavier for matrices, small normal embeddings, norms at identity."""
    generator = torch.Generator().manual_seed(seed)
    for network in (encoder, decoder):
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5, generator=generator)


def train_tokenizer(path: Path, lines: Iterable[Translations], vocabulary: int) -> None:
    """Train a sentencepiece model on the sentences of `lines`, each language with equal weight.

    Raises IntegrityError if the text is too little for that many pieces.
    """
    import sentencepiece

    texts: dict[str, list[str]] = {}
    for line in lines:
        for code, text in line.items():
            texts.setdefault(code, []).append(text)
    most = min(max(len(t) for t in texts.values()), TOKENIZER_SENTENCES) if texts else 0
    balanced = [t for _, found in sorted(texts.items()) for t in islice(cycle(found), most)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(balanced),
            model_writer=model,
            vocab_size=vocabulary,
            character_coverage=0.9999,
            hard_vocab_limit=False,  # little text has fewer pieces
            byte_fallback=True,  # any text can be encoded, in bytes if need be
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        hint = "set a smaller shape.vocabulary, or give more text"
        raise IntegrityError(f"no tokenizer of {vocabulary} pieces: {error}", hint) from error
    with atomic_path(path, force=True) as temporary:
        temporary.write_bytes(model.getvalue())


def center(encoder: State, decoder: State, offset_D: Tensor) -> None:
    """Move what all concepts share from the encoder's last bias into the decoder's; in place.

    Texts stay exactly the same. But a large common offset, which nothing in training prevents,
    makes the cosine of any two concepts almost 1, and is lost digits in every half precision.
    """
    encoder["layer_norm.bias"] = encoder["layer_norm.bias"] - offset_D
    for key in [key for key in decoder if key.endswith("encoder_decoder_attn.v_proj.bias")]:
        weight = decoder[key.replace(".bias", ".weight")]
        decoder[key] = decoder[key] + weight @ offset_D


def save_space(
    folder: Path,
    recipe: SpaceRecipe,
    states: tuple[State, State],
    configs: tuple[EncoderConfig, DecoderConfig],
    tokenizer: Path,
    source: Mapping[str, Any],
) -> Path:
    """Write a space folder: weights in float16, tokenizer, config.json last."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, state in zip(("encoder", "decoder"), states, strict=True):
        state = {k: v.detach().half().cpu().contiguous() for k, v in state.items()}
        with atomic_path(folder / f"{name}.safetensors", force=True) as temporary:
            save_file(state, temporary)
    with atomic_path(folder / "tokenizer.model", force=True) as temporary:
        shutil.copyfile(tokenizer, temporary)
    config = {
        "kind": "space",
        "name": recipe.name,
        "licence": recipe.licence,
        "languages": recipe.languages,
        "encoder": asdict(configs[0]),
        "decoder": asdict(configs[1]),
        "source": dict(source),
    }
    with atomic_path(folder / "config.json", force=True) as temporary:
        temporary.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder
