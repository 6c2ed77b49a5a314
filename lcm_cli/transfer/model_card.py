"""Model cards for the Hub: README.md with the metadata that the Hub reads.

An author's own README.md is kept; only missing metadata is added.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lcm_cli.hub.cards import UNKNOWN_LICENCE
from lcm_cli.hub.layouts import MODEL_CARD, read_metadata
from lcm_cli.hub.locate import is_repository
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
_TASK = {  # of the results, in the Hub's terms
    "space": "translation",
    "model": "text-generation",
    "speech": "automatic-speech-recognition",
}
_PORT_TITLE = """
# {name}

A space exported from `lcm`, the command line for language modelling in concept space.

{facts}
"""
_PORT_USE = """
## Use with transformers

The files are in the M2M-100 layout. A text begins with its language, and its concept is the mean
of the encoder's output over all tokens:

```python
import torch
from transformers import AutoTokenizer, M2M100ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

place = "."  # this folder, or the name of the repository
tokenizer = AutoTokenizer.from_pretrained(place)
model = M2M100ForConditionalGeneration.from_pretrained(place).eval()

batch = tokenizer(["{first} Hello!"], padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    hidden = model.get_encoder()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    concepts = (hidden * mask).sum(1) / mask.sum(1)
    ids = model.generate(
        encoder_outputs=BaseModelOutput(concepts[:, None]),
        forced_bos_token_id=tokenizer.convert_tokens_to_ids("{last}"),
        num_beams=5,
        max_new_tokens=100,
    )
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```
"""


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
    ours = metadata(repo, config, licence, languages, results)
    head = ours | read_metadata(own) | {"license": ours["license"]}
    return _front(head) + (_own_body(own) or _body(repo, config))


def port_card(
    config: Mapping[str, Any], page: Path, licence: str, metrics: Mapping[str, float]
) -> str:
    """Return the text of README.md for a space in the M2M-100 layout.

    `page` is the space's own model card, which is kept if it exists; `metrics` are the results of
    its card.
    """
    name, languages = config["name"], config["languages"]
    known = "unknown" if licence in ("", UNKNOWN_LICENCE) else licence
    results = {"dataset": f"evaluation of {name}", "metrics": metrics} if metrics else None
    ours = metadata(name, config, known, languages, results)
    ours |= {"library_name": "transformers", "tags": ["m2m_100", *ours["tags"]]}
    theirs = {key: value for key, value in read_metadata(page).items() if key not in ours}
    body = _own_body(page) or _PORT_TITLE.format(name=name, facts="\n".join(_facts(config)))
    use = _PORT_USE.replace("{first}", languages[0]).replace("{last}", languages[-1])
    return _front(ours | theirs) + body.rstrip("\n") + "\n" + use


def _front(metadata: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n"


def _own_body(page: Path) -> str:
    """Return a model card without its metadata, "" if there is none."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return re.sub(r"\A---\r?\n.*?\n---[^\S\n]*\n", "", text, flags=re.DOTALL)


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
    if (adapter := config.get("adapter")) and is_repository(adapter["base"]):
        found |= {"base_model": adapter["base"], "base_model_relation": "adapter"}
    if codes := [language(code) for code in languages]:
        names = (one.iso639_1 or one.iso639_3 for one in codes)
        found["language"] = list(dict.fromkeys(names))
    if results:
        measured = [_result(results, _TASK[config["kind"]])]
        found["model-index"] = [{"name": repo.rpartition("/")[2], "results": measured}]
    return found


def _words(config: Mapping[str, Any]) -> list[str]:
    adapter = ["adapter"] if config.get("adapter") else []
    if config["kind"] == "model":
        return ["concept-model", str(config.get("architecture")), *adapter]
    return ["concept-space" if config["kind"] == "space" else "speech-encoder", *adapter]


def _spaces(config: Mapping[str, Any]) -> list[str]:
    if config["kind"] == "model":
        return list(filter(None, [(config.get("space") or {}).get("name", "")]))
    return [config["name"]] if config["kind"] == "space" else list(config["spaces"])


def _result(results: Mapping[str, Any], task: str) -> dict[str, Any]:
    dataset = str(results["dataset"])
    return {
        "task": {"type": task},
        "dataset": {"name": dataset, "type": _slug(dataset)},
        "metrics": [
            {"type": _slug(name), "name": name, "value": value}
            for name, value in results["metrics"].items()
        ],
    }


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name.lower()).strip("-")


def _body(repo: str, config: Mapping[str, Any]) -> str:
    kind = config["kind"]
    return _TEXT.format(
        title=repo.partition("/")[2],
        kind=_KIND[kind],
        repo=repo,
        use=_USE[kind].format(repo=repo),
        facts="\n".join(["", *_facts(config), ""]),
    )


def _facts(config: Mapping[str, Any]) -> list[str]:
    adapter = config.get("adapter")
    about = "- an adapter of `{base}`, weights `{fingerprint}`: rank {rank}, alpha {alpha:g}"
    return [*([about.format(**adapter)] if adapter else []), *_shapes(config)]


def _shapes(config: Mapping[str, Any]) -> list[str]:
    kind = config["kind"]
    if kind == "model":
        space = config.get("space") or {}
        facts = [
            f"- architecture: `{config['architecture']}`",
            f"- concepts of {config['concept_dim']} numbers",
        ]
        if space.get("name"):
            facts.append(f"- space: `{space['name']}`, fingerprint `{space.get('fingerprint')}`")
        return facts
    dim = config["encoder"]["concept_dim" if kind == "speech" else "model_dim"]
    spaces = [f"- spaces: {', '.join(config['spaces'])}"] if kind == "speech" else []
    languages = f"- languages: {' '.join(config['languages'])}"
    return [f"- concepts of {dim} numbers", *spaces, languages]
