"""Layouts of checkpoints, detected from the file names and config.json of a folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.schema import json_value

# lcm's own three, and the foreign ones, which are converted once.
Layout = Literal["space", "model", "speech", "sonar-llm", "official", "m2m-100"]
OURS: tuple[Layout, ...] = ("space", "model", "speech")

SPACE_FILES = {
    "encoder": "encoder.safetensors",
    "decoder": "decoder.safetensors",
    "tokenizer": "tokenizer.model",
}
ADAPTER = "adapter.safetensors"  # the only weights of an adapter; config.json names their base
MODEL_CARD = "README.md"  # its metadata holds the licence, the languages and the results
OFFICIAL_CARD = "model_card.yaml"  # beside the model.pt of the official trainer
_OFFICIAL = ("base_lcm", "two_tower_diffusion_lcm")
_KINDS_OF_WEIGHTS = (
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
    r"model\.pt",
)


def detect_layout(folder: Path) -> Layout:
    """Return the layout of a checkpoint by its config.json or model_card.yaml.

    Raises NotFoundError if lcm cannot read the layout, IntegrityError for a damaged config.
    """
    config = read_json(folder / "config.json")
    if config.get("kind") in OURS:
        kind: Layout = config["kind"]
        return kind
    if "llama_config" in config:
        return "sonar-llm"
    if config.get("model_type") == "m2m_100":
        return "m2m-100"
    if (folder / OFFICIAL_CARD).is_file() or config.get("model_type") in _OFFICIAL:
        return "official"
    raise NotFoundError(
        f"{folder} holds no checkpoint that lcm can read",
        "lcm reads its own layout, SONAR-LLM's and the official one: see docs/checkpoints.md",
    )


def needed_files(layout: Layout, names: Sequence[str], what: str) -> list[str]:
    """Return the files of a checkpoint that lcm needs, and its README.md if it has one.

    `what` names the checkpoint in messages. Raises NotFoundError if a needed file is missing.
    """
    if layout == "official":
        settings = [name for name in ("config.json", OFFICIAL_CARD) if name in names]
        wanted = settings + (choose_weights(names) or ["model.pt"])
    elif layout in ("space", "model") and ADAPTER in names:
        wanted = ["config.json", ADAPTER]
    elif layout == "space":
        wanted = ["config.json", *SPACE_FILES.values()]
    else:
        wanted = ["config.json", *(choose_weights(names) or ["model.safetensors"])]
    if missing := sorted(set(wanted) - set(names)):
        raise NotFoundError(f"{what} is not a complete {layout}: it has no {', '.join(missing)}")
    return wanted + [MODEL_CARD] * (MODEL_CARD in names)


def choose_weights(names: Sequence[str]) -> list[str]:
    """Return the files that hold weights: safetensors if there are any, else pickles."""
    for kind in _KINDS_OF_WEIGHTS:
        if weights := [name for name in names if re.fullmatch(kind, name)]:
            return weights
    return []


def weight_parts(file: Path) -> list[Path]:
    """Return the files of weights: `file` itself, or the parts that the index beside it lists.

    Raises IntegrityError for an index that is malformed or lists a file in another folder.
    """
    index = file.with_name(f"{file.name}.index.json")
    parts = {} if file.is_file() else read_json(index).get("weight_map", {})
    if not isinstance(parts, dict):
        raise IntegrityError(f"{index}: weight_map is not an object", "pull it again")
    names = sorted(set(map(str, parts.values()))) or [file.name]
    for name in names:
        if Path(name).name != name:
            raise IntegrityError(f"{index}: a weight file may not lie in another folder: {name}")
    return [file.with_name(name) for name in names]


def read_licence(folder: Path) -> str:
    """Return the licence that a checkpoint's own files state, "" if they state none."""
    for name in ("origin.json", "config.json"):
        if licence := read_json(folder / name).get("licence"):
            return str(licence)
    return str(read_metadata(folder / MODEL_CARD).get("license") or "")


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the YAML metadata at the head of a model card; {} if there is none."""
    import yaml

    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\r?\n(.*?\n)---\s", text, re.DOTALL)
    try:
        found = yaml.safe_load(head[1]) if head else {}
    except yaml.YAMLError:  # lcm does not need it
        return {}
    return found if isinstance(found, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if there is no file. Raises IntegrityError if it is not JSON."""
    if not path.is_file():
        return {}
    content = json_value(path.read_bytes(), str(path))
    return content if isinstance(content, dict) else {}
