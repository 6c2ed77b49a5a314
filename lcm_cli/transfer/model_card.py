"""Model cards for the Hub: README.md with the metadata that the Hub reads.

An author's own README.md is kept; only missing metadata is added.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lcm_cli.hub.layouts import MODEL_CARD, read_metadata
from lcm_cli.text.languages import language

_TEXT = """
# {title}

{kind} for `lcm`, the command line for language modelling in concept space.

    lcm pull {repo}
    {use}
{facts}"""
_USE = {
    "space": "lcm translate text.txt --to fra --space {repo}",
    "model": "lcm checkpoints show {repo}",
    "speech": "lcm checkpoints show {repo}",
}
_KIND = {"space": "A space", "model": "A concept model", "speech": "A speech encoder"}


def model_card(
    repo: str,
    config: Mapping[str, Any],
    folder: Path,
    licence: str,
    languages: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of README.md for the checkpoint in `folder`, whose config.json is `config`.

    `languages`: SONAR's codes. `results`: {"dataset": name, "metrics": {name: number}}.
    """
    own = folder / MODEL_CARD
    text = own.read_text(encoding="utf-8") if own.is_file() else ""
    body = re.sub(r"\A---\r?\n.*?\n---[^\S\n]*\n", "", text, flags=re.DOTALL)
    ours = metadata(repo, config, licence, languages, results)
    head = ours | read_metadata(own) | {"license": ours["license"]}
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{body or _body(repo, config)}"


def metadata(
    repo: str,
    config: Mapping[str, Any],
    licence: str,
    languages: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the metadata of a checkpoint for the Hub; the parameters are those of `model_card`."""
    tags = [*_words(config), *(f"space:{name}" for name in _spaces(config))]
    found: dict[str, Any] = {"library_name": "lcm", "license": licence.lower(), "tags": tags}
    if codes := [language(code) for code in languages]:
        names = (one.iso639_1 or one.iso639_3 for one in codes)
        found["language"] = list(dict.fromkeys(names))
    if results:
        found["model-index"] = [{"name": repo.partition("/")[2], "results": [_result(results)]}]
    return found


def _words(config: Mapping[str, Any]) -> list[str]:
    if config["kind"] == "model":
        return ["concept-model", str(config.get("architecture"))]
    return ["concept-space" if config["kind"] == "space" else "speech-encoder"]


def _spaces(config: Mapping[str, Any]) -> list[str]:
    if config["kind"] == "model":
        return list(filter(None, [(config.get("space") or {}).get("name", "")]))
    return [config["name"]] if config["kind"] == "space" else list(config["spaces"])


def _result(results: Mapping[str, Any]) -> dict[str, Any]:
    dataset = str(results["dataset"])
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": dataset, "type": re.sub(r"[^\w.-]+", "-", dataset.lower())},
        "metrics": [
            {"type": re.sub(r"[^\w.-]+", "-", name.lower()), "name": name, "value": value}
            for name, value in results["metrics"].items()
        ],
    }


def _body(repo: str, config: Mapping[str, Any]) -> str:
    kind = config["kind"]
    facts = []
    if kind == "model":
        space = config.get("space") or {}
        facts.append(f"- architecture: `{config['architecture']}`")
        facts.append(f"- concepts of {config['concept_dim']} numbers")
        if space.get("name"):
            facts.append(f"- space: `{space['name']}`, fingerprint `{space.get('fingerprint')}`")
    else:
        shapes = config["encoder"]
        dim = shapes["concept_dim" if kind == "speech" else "model_dim"]
        facts.append(f"- concepts of {dim} numbers")
        if kind == "speech":
            facts.append(f"- spaces: {', '.join(config['spaces'])}")
        facts.append(f"- languages: {' '.join(config['languages'])}")
    return _TEXT.format(
        title=repo.partition("/")[2],
        kind=_KIND[kind],
        repo=repo,
        use=_USE[kind].format(repo=repo),
        facts="\n".join(["", *facts, ""]),
    )
