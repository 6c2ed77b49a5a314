"""Publication of checkpoints on the Hugging Face Hub: config, weights and card in one commit."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lcm_cli.errors import IntegrityError, NotFoundError, UsageError
from lcm_cli.files import not_there
from lcm_cli.hub import cards, locate
from lcm_cli.hub.http import Notice
from lcm_cli.hub.layouts import (
    ADAPTER,
    MODEL_CARD,
    OURS,
    SPACE_FILES,
    choose_weights,
    detect_layout,
    needed_files,
    read_json,
    read_licence,
)
from lcm_cli.hub.snapshot import endpoint, translated
from lcm_cli.progress import ignore
from lcm_cli.transfer.install import check_weights
from lcm_cli.transfer.inventory import find_checkpoint
from lcm_cli.transfer.model_card import model_card

SHARD = 5_000_000_000  # the most bytes of weights in one file
_BUNDLED = {  # the names of a bundled checkpoint's files in a repository
    "space": {"config": "config.json", **SPACE_FILES},
    "model": locate.MODEL_FILES,
    "speech": locate.SPEECH_FILES,
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Pushed:
    """A commit on the Hub: its address, its hash and the names of the uploaded files."""

    url: str
    commit: str
    files: list[str]


def push(
    source: str,
    repo: str,
    *,
    licence: str = "",
    private: bool = False,
    revision: str = "main",
    results: Mapping[str, Any] | None = None,
    with_state: bool = False,
    shard: int = SHARD,
    notice: Notice = ignore,
) -> Pushed:
    """Upload the checkpoint `source`, a folder or a name, to the repository ORG/REPO.

    The repository is created if it does not exist. Raises UsageError if no licence is known or
    `source` is in a foreign layout, NotFoundError, IntegrityError if the weights do not fit the
    config, AuthError without a token that may write.
    """
    if not locate.is_repository(repo) or "@" in repo:
        raise UsageError(f"{repo!r} is not the name of a repository", "use the form ORG/REPO")
    files, known = _own_files(source)
    config = read_json(files["config.json"])
    folder = files["config.json"].parent
    adapter = locate.read_adapter(folder)
    if adapter and _is_folder(adapter.config.base):
        notice(
            f"its base is the folder {adapter.config.base}, which others do not have: push that "
            "as well, and name its repository as the adapter's base in config.json"
        )
    licence = licence or known
    if not licence or licence == cards.UNKNOWN_LICENCE:
        message = f"the licence of {source} is unknown"
        raise UsageError(message, "give its SPDX identifier, as in: --licence CC-BY-4.0")
    card = model_card(repo, config, folder, licence, _languages(config), results)
    if with_state:
        state = _last_state(folder)
        files[state.name] = state
    with (
        _sharded(files, shard, notice) as parts,
        translated(repo, revision, f"lcm checkpoints push {source} {repo}"),
    ):
        return _upload(repo, {**parts, MODEL_CARD: card.encode()}, private, revision)


def _own_files(source: str) -> tuple[dict[str, Path], str]:
    """Return the files of a checkpoint by their names in a repository, and its licence if known.

    Raises IntegrityError if the weights do not fit the config.
    """
    folder = Path(source)
    if not folder.is_dir():
        found = find_checkpoint(source)
        if found.path is None:
            raise NotFoundError(f"{source} is not on this machine", f"run: lcm pull {source}")
        if found.where == "bundled":
            names = _BUNDLED[found.kind]
            return {names[role]: path for role, path in found.files.items()}, found.licence
        folder = found.path
    folder = locate.checkpoint_in(folder)
    layout = detect_layout(folder)
    if layout not in OURS:
        message = f"{source} is in the layout of {layout}, not in lcm's"
        raise UsageError(message, f"convert it first: lcm checkpoints convert {source} -o DIR")
    check_weights(layout, folder)
    files = [name for name in needed_files(layout, _names(folder), source) if name != MODEL_CARD]
    return {name: folder / name for name in files}, read_licence(folder)


def _is_folder(base: str) -> bool:
    return base not in cards.cards() and Path(base).is_dir()


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _last_state(folder: Path) -> Path:
    """Return the last state of the training run that a checkpoint belongs to."""
    from lcm_cli.training.states import states

    # A state that several processes wrote is a folder, and resumes with as many processes only.
    if whole := [path for path in states(folder.parent) if path.is_file()]:
        return whole[-1]
    raise NotFoundError(
        f"no state-*.pt beside {folder}",
        "push the folder of a run, or leave out --with-state",
    )


def _languages(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the languages of a space, or of a model's space if they are known."""
    from lcm_cli.hub.cards import space_languages

    if config["kind"] != "model":
        return tuple(config["languages"])
    name = (config.get("space") or {}).get("name", "")
    return space_languages().get(name, ())


@contextmanager
def _sharded(files: Mapping[str, Path], most: int, notice: Notice) -> Iterator[dict[str, Path]]:
    """Yield the files, with weights of more than `most` bytes split into temporary files."""
    weights = files.get(WEIGHTS)
    if weights is None or weights.stat().st_size <= most:
        yield dict(files)
        return
    notice(f"splitting {WEIGHTS} into files of at most {most / 1e9:.1f} GB")
    with TemporaryDirectory(dir=weights.parent, prefix=".push.") as place:
        rest = {name: path for name, path in files.items() if name != WEIGHTS}
        yield rest | _split(weights, Path(place), most)


def _split(weights: Path, place: Path, most: int) -> dict[str, Path]:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=most
    )
    for name, tensors in split.filename_to_tensors.items():
        part = {tensor: state[tensor] for tensor in tensors}
        save_file(part, place / name, metadata={"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (place / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return {path.name: path for path in sorted(place.iterdir())}


def _upload(repo: str, files: Mapping[str, Path | bytes], private: bool, revision: str) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint(), library_name="lcm")
    api.create_repo(repo, private=private, exist_ok=True)
    if revision != "main":
        api.create_branch(repo, branch=revision, exist_ok=True)
    before = [file.rfilename for file in api.model_info(repo, revision=revision).siblings or ()]
    # Weights of an earlier push, whole or with another split, must not stay beside the new ones.
    weights = (*choose_weights(before), INDEX, ADAPTER, *SPACE_FILES.values())
    old = [name for name in weights if name in before and name not in files]
    kept = [CommitOperationAdd(name, content) for name, content in files.items()]
    gone = [CommitOperationDelete(name) for name in dict.fromkeys(old)]
    done = api.create_commit(
        repo,
        [*kept, *gone],
        commit_message=f"Upload {repo.partition('/')[2]} with lcm",
        revision=revision,
    )
    return Pushed(str(done.commit_url), done.oid, sorted(files))


def read_results(path: Path) -> dict[str, Any]:
    """Read evaluation results from JSON: {"dataset": name, "metrics": {name: number}}.

    Raises NotFoundError, or IntegrityError for another form.
    """
    if not path.is_file():
        raise not_there(path)
    found = read_json(path)
    metrics = found.get("metrics")
    numbers = isinstance(metrics, dict) and all(
        isinstance(value, int | float) for value in metrics.values()
    )
    if not isinstance(found.get("dataset"), str) or not metrics or not numbers:
        hint = '{"dataset": "a name", "metrics": {"rougeL": 0.31}}'
        raise IntegrityError(f"{path} does not hold results", f"it should look like {hint}")
    return found
