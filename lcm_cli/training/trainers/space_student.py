"""Distil the encoder of a space into a new one, from text alone.

The student gives each sentence the concept that the teacher gives it. In a language that the
teacher does not know, it learns the teacher's concept of the translation (Reimers and Gurevych
2020; SONAR, Duquenne et al. 2023, section 4.2). The decoder and the tokenizer stay the teacher's.

Shapes: N pairs, R = 2 N rows, D concept dim, V vocabulary.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.evaluation.space_quality import evaluate_space
from lcm_cli.files import atomic_path
from lcm_cli.space import Space, load_space
from lcm_cli.space.decoder import DecoderConfig, TextDecoder
from lcm_cli.space.encoder import EncoderConfig, TextEncoder
from lcm_cli.space.loading import load_weights
from lcm_cli.space.similarity import row_cosines
from lcm_cli.space.tokenizer import TAGS, Tokenizer
from lcm_cli.training.data.parallel_text import (
    MACHINE,
    NONE,
    Pairs,
    ParallelText,
    Room,
    Translations,
    read_translations,
)
from lcm_cli.training.optim import freeze, sizes
from lcm_cli.training.recipes.space import SpaceDistillation, SpaceRecipe
from lcm_cli.training.trainers.concept_loss import concept_losses
from lcm_cli.training.trainers.pair_trainer import PairTrainer
from lcm_cli.training.trainers.space_folder import copy, save_config, save_weights
from lcm_cli.training.trainers.space_parts import initialize, set_dropout
from lcm_cli.training.trainers.text_space import dev_lines, text_set, unsorted
from lcm_cli.weights import without_content

REPORT = "report.json"
_SAMPLED = 8  # batches that the unit of the concepts is measured on
_CPU = torch.device("cpu")


class StudentTrainer(PairTrainer):
    """An encoder that learns the concepts of a teacher."""

    parts = ("loss", "contrast")

    def __init__(
        self,
        recipe: SpaceRecipe,
        teacher: Space,
        encoder: TextEncoder,
        data: ParallelText,
        dev: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.teacher, self.encoder = teacher, encoder
        self._added = recipe.languages[len(teacher.languages) :]
        # Language tokens from here on are unknown to the teacher: new languages follow its own.
        self._first_new = teacher.tokenizer.first_language + len(teacher.languages)
        super().__init__(recipe, {"encoder": encoder}, data, dev)
        self._sigma = self._spread()

    @torch.no_grad()
    def _spread(self) -> float:
        """Return the mean standard deviation of the teacher's concepts, the unit of the losses."""
        pairs, batches = self.data.epoch(0, 0, self.options.batch_tokens, join=0.0, translate=0.0)
        found = [self._targets(pairs[batch])[0] for batch in batches[:_SAMPLED]]
        return float(torch.cat(found).std(dim=0).mean())

    def losses(self, pairs: Pairs, room: Room | None = None) -> tuple[Tensor, ...]:
        """Return the squared distance, in units of the concepts' variance, and the contrast."""
        targets_RD, same_RR, taught_R = self._targets(pairs)
        with self._fast_math():
            rows, order_R = self.data.rows(pairs.sides())
            found_RD = unsorted(self.encoder.encode(rows), order_R).float()
        scaled = found_RD / self._sigma, targets_RD / self._sigma
        return concept_losses(*scaled, same_RR, taught_R)

    @torch.no_grad()
    def _targets(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the teacher's concepts (R, D), which rows mean the same, and which have a target.

        A row has no target if the teacher knows neither its language nor that of a translation.
        """
        # Rows n and n + N are the sides of a pair: rolling by N exchanges them.
        own_R2, other_R2 = pairs.sides(), pairs.sides().roll(len(pairs), 0)
        aligned_R = pairs.aligned_N.repeat(2)
        own_known_R, other_known_R = self._known(own_R2), self._known(other_R2)
        taught_R = own_known_R | (other_known_R & aligned_R)
        chosen_R2 = torch.where(own_known_R[:, None], own_R2, other_R2)
        # A row of NONE is empty. Its concept is zero, and does not count.
        chosen_R2 = chosen_R2.masked_fill(~taught_R[:, None], NONE)
        rows, order_R = self.data.rows(chosen_R2)
        targets_RD = unsorted(self.teacher.encoder.encode(rows), order_R).float()
        pair_R = torch.arange(len(pairs), device=self.device).repeat(2)
        # Not negatives of the contrast: translations, sentences that share a target, and rows
        # without one.
        same_RR = (pair_R[:, None] == pair_R) & aligned_R
        same_RR |= (chosen_R2[:, None] == chosen_R2).all(dim=2) | ~taught_R
        return targets_RD, same_RR, taught_R

    def _known(self, sentences_R2: Tensor) -> Tensor:
        """Return whether the teacher knows the language of each row."""
        first_R = sentences_R2[:, 0]
        return (self.data.languages(first_R) < self._first_new) & (first_R != NONE)

    def whole(self, losses: tuple[Tensor, ...]) -> Tensor:
        """Return the weighted sum of the losses."""
        return losses[0] + self.options.contrast * losses[1]

    def _captures(self) -> bool:
        """Return False: steps with a teacher are not captured, so there is never a `room`."""
        return False

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to continue exactly."""
        return super().state() | {"teacher": self.teacher.fingerprint, "sigma": self._sigma}

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Restore `state`. Raises ValueError for a state with another teacher."""
        if state["teacher"] != self.teacher.fingerprint:
            raise ValueError("distill.teacher cannot be changed within a run")
        super().restore(state, shards)
        self._sigma = state["sigma"]

    def export(self, folder: Path) -> Path:
        """Write the space to `folder`/space: the student with the teacher's decoder."""
        path, teacher = folder / "space", self.teacher
        path.mkdir(parents=True, exist_ok=True)
        with self.average.used(self.networks.values()):
            save_weights(path / "encoder.safetensors", self.encoder.state_dict(), self.recipe)
        decoder = DecoderConfig(**teacher.files.config["decoder"])
        if not (path / "config.json").is_file():  # neither changes within a run
            copy(teacher.files.tokenizer, path / "tokenizer.model")
            self._save_decoder(path / "decoder.safetensors", decoder)
        decoder = replace(decoder, vocabulary=decoder.vocabulary + len(self._added))
        source = {
            "trained_by": "lcm distill",
            "teacher": teacher.name,
            "teacher_fingerprint": teacher.fingerprint,
            "steps": self.step,
            "sentences": self.sentences,
        }
        save_config(path, self.recipe, (self.encoder.config, decoder), source)
        return path

    def _save_decoder(self, path: Path, config: DecoderConfig) -> None:
        files = self.teacher.files
        if not self._added and not files.adapter:
            copy(files.decoder, path)
            return
        decoder = load_weights(
            TextDecoder, config, files.decoder, _CPU, torch.float32, files.adapter
        )
        embed = decoder.decoder_frontend.embed
        embed.weight.data = with_languages(embed.weight, self.teacher, len(self._added))
        save_weights(path, decoder.state_dict(), self.recipe)

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Export the space, and score it on the recipe's dev data.

        `cosine` is the mean similarity to the teacher's concepts, in the teacher's languages.
        """
        found = super().evaluate(folder)
        if found:
            space = load_space(str(folder / "space"), device=str(self.device))
            found["eval"] |= self._cosine(space)
        return found

    def _cosine(self, space: Space) -> dict[str, float]:
        cosines = []
        for code in self.teacher.languages:
            texts = [line[code] for line in self.dev if code in line]
            texts = texts[: self.options.eval_sentences]
            ours, theirs = (s.encode(texts, code).concepts for s in (space, self.teacher))
            cosines.append(row_cosines(ours, theirs))
        return {"cosine": float(np.concatenate(cosines).mean())} if any(map(len, cosines)) else {}

    def report(self, folder: Path) -> dict[str, dict[str, float]]:
        """Return the scores of teacher and student on the dev data; write them to `folder`."""
        student = load_space(str(folder / "space"), device=str(self.device))
        found: dict[str, dict[str, float]] = {}
        for name, space in (("teacher", self.teacher), ("student", student)):
            found[name] = {"parameters": encoder_sizes(_encoder_config(space))[0]}
            if self.dev:
                quality = evaluate_space(space, self.dev, limit=self.options.eval_sentences)
                found[name] |= quality.means()
        with atomic_path(folder / REPORT, force=True) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found


def encoder_sizes(config: EncoderConfig, frozen: Sequence[str] = ()) -> tuple[int, int]:
    """Return the numbers of parameters of an encoder: all, and those trained.

    No memory is allocated for them. Raises IntegrityError for a pattern in `frozen` that matches
    none.
    """
    with without_content():
        networks = nn.ModuleDict({"encoder": TextEncoder(config)})
    freeze(networks, frozen)
    return sizes(networks)


def _encoder_config(space: Space) -> EncoderConfig:
    return EncoderConfig(**space.files.config["encoder"])


def make_student_trainer(recipe: SpaceRecipe, device: torch.device) -> StudentTrainer:
    """Prepare a run: teacher, student, data. Raises LcmErrors of all three."""
    teacher = load_space(options(recipe).teacher, device=str(device))
    added = tuple(code for code in recipe.languages if code not in teacher.languages)
    recipe = replace(
        recipe,
        languages=(*teacher.languages, *added),
        licence=recipe.licence or teacher.licence,
    )
    encoder = new_student(recipe, teacher, len(added)).to(device)
    set_dropout(encoder, recipe.train.dropout)
    sets = [text_set(entry) for entry in recipe.data.train]
    longest = encoder.config.max_length
    data = ParallelText(
        ((_teachable(path, teacher), weight) for path, weight in sets),
        Tokenizer(teacher.files.tokenizer, recipe.languages),
        min(recipe.train.max_tokens, longest),
        longest,
        device,
    )
    return StudentTrainer(recipe, teacher, encoder, data, dev_lines(recipe))


def options(recipe: SpaceRecipe) -> SpaceDistillation:
    """Return the [distill] table. Raises UsageError without one."""
    if recipe.distill is None:
        hint = f"add a [distill] table with a teacher, or use lcm train, to train {recipe.name}"
        raise UsageError("the recipe names no teacher", hint)
    return recipe.distill


def _teachable(path: Path, teacher: Space) -> Iterator[Translations]:
    """Yield the lines of a file.

    Raises IntegrityError for a line without a sentence in a language of the teacher.
    """
    for number, line in enumerate(read_translations(path), 1):
        codes = dict.fromkeys(code.removeprefix(MACHINE) for code in line)
        if line and not codes.keys() & set(teacher.languages):
            raise IntegrityError(
                f"{path}:{number}: {teacher.name} knows none of the languages {', '.join(codes)}",
                "a line needs a translation into one of the teacher's languages",
            )
        yield line


def student_config(recipe: SpaceRecipe, teacher: EncoderConfig, added: int) -> EncoderConfig:
    """Return the shapes of a student with `added` languages.

    Raises IntegrityError for a layer that the teacher lacks, or another width than its concepts'.
    """
    layers, shape = options(recipe).layers, recipe.shape
    vocabulary = teacher.vocabulary + added
    if wrong := [index for index in layers if not 0 <= index < teacher.layers]:
        raise IntegrityError(
            f"distill.layers: the teacher has no layer {wrong[0]}",
            f"its layers are 0 to {teacher.layers - 1}",
        )
    if layers:
        return replace(teacher, layers=len(layers), vocabulary=vocabulary)
    if shape.dim != teacher.model_dim:
        raise IntegrityError(
            f"shape.dim is {shape.dim}, the teacher's concepts have {teacher.model_dim} numbers",
            f"set shape.dim = {teacher.model_dim}, or distill.layers to start from its layers",
        )
    return EncoderConfig(
        shape.encoder_layers,
        shape.dim,
        shape.heads,
        shape.ffn_dim,
        vocabulary,
        teacher.max_length,
    )


def new_student(recipe: SpaceRecipe, teacher: Space, added: int) -> TextEncoder:
    """Return a student with the teacher's embeddings and final norm, ready for training."""
    shapes = _encoder_config(teacher)
    student = TextEncoder(student_config(recipe, shapes, added))
    files = teacher.files
    whole = load_weights(TextEncoder, shapes, files.encoder, _CPU, torch.float32, files.adapter)
    layers = options(recipe).layers
    if not layers:
        initialize([student], recipe.train.seed)
    for index, layer in zip(layers, student.encoder.layers, strict=False):
        layer.load_state_dict(whole.encoder.layers[index].state_dict())
    student.layer_norm.load_state_dict(whole.layer_norm.state_dict())
    embed_VD = whole.encoder_frontend.embed.weight
    student.encoder_frontend.embed.weight.data = with_languages(embed_VD, teacher, added)
    return student.train()


def with_languages(embed_VD: Tensor, teacher: Space, added: int) -> Tensor:
    """Return a copy of token embeddings with `added` languages, each the mean of the others."""
    first = teacher.tokenizer.first_language
    # New languages go between those of the teacher and the tags, which keep their place at the end.
    known_LD = embed_VD[first:-TAGS]
    new_LD = known_LD.mean(dim=0, keepdim=True).expand(added, -1)
    return torch.cat([embed_VD[:first], known_LD, new_LD, embed_VD[-TAGS:]]).detach()
