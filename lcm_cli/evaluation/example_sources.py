"""Sources of examples: files, and data sets of the Hugging Face Hub.

The Hub keeps a Parquet copy of every public data set on a separate branch. Only that copy is read;
code shipped with a data set is never run.
"""

import re
from pathlib import Path
from typing import Any

from lcm_cli.errors import NotFoundError, UsageError
from lcm_cli.files import sha256
from lcm_cli.hub.http import offline
from lcm_cli.hub.snapshot import endpoint, hub_cache, translated
from lcm_cli.schema import nearest
from lcm_cli.text.languages import find_language

REVISION = "refs/convert/parquet"
# Short names of the data sets of the paper.
KNOWN = {
    "cnn_dailymail": "abisee/cnn_dailymail:3.0.0",
    "xsum": "EdinburghNLP/xsum:default",
    "xlsum": "csebuetnlp/xlsum",
}
# ORG/NAME, then the config and the split.
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?::([\w.-]+))?")


def locate(data: str) -> tuple[str, dict[str, Any]]:
    """Return the path of the data, downloaded if need be, and its description for metrics.json.

    `data` is a path, or ORG/NAME:CONFIG:SPLIT, by default the only config and the split test; a
    name in KNOWN stands for ORG/NAME. Raises NotFoundError if the data set cannot be found.
    """
    if Path(data).exists():
        path = Path(data)
        return data, {"path": data} | ({"sha256": sha256(path)} if path.is_file() else {})
    name, *rest = data.split(":")
    match = _HUB.fullmatch(":".join([KNOWN.get(name, name), *rest]))
    if match is None or Path(data).suffix in (".jsonl", ".parquet", ".arrow", ".json"):
        return data, {"path": data}  # the reader reports a missing file, with similar names
    repo, config, split = match[1], match[2] or "", match[3] or "test"
    folder = _cached(repo, config, split) if offline() else _downloaded(repo, config, split)
    about = {"path": data, "repository": repo, "config": folder.parent.name, "split": split}
    return str(folder), about | {"revision": folder.parent.parent.name}


def language_of(about: dict[str, Any]) -> str:
    """Return the code of the language that a data set's config is named after ("german"), or ""."""
    try:
        return find_language(about.get("config", "").replace("_", " ")).code
    except NotFoundError:
        return ""


def _cached(repo: str, config: str, split: str) -> Path:
    """Return the folder of an earlier download. Raises NotFoundError if there is none."""
    snapshots = hub_cache() / f"datasets--{repo.replace('/', '--')}"
    ref = snapshots / "refs" / REVISION
    if ref.is_file():
        commit = snapshots / "snapshots" / ref.read_text(encoding="utf-8").strip()
        for folder in sorted(commit.glob(f"{config or '*'}/{split}")):
            if any(folder.glob("*.parquet")):
                return folder
    raise NotFoundError(
        f"the data set {repo} has not been downloaded, and lcm is offline",
        "run the command once without --offline, or name a file",
    )


def _downloaded(repo: str, config: str, split: str) -> Path:
    """Download a split, unless it is cached, and return its folder, REVISION's CONFIG/SPLIT."""
    from huggingface_hub import HfApi, snapshot_download

    with translated(repo, REVISION, "lcm evaluate"):
        api = HfApi(endpoint=endpoint(), library_name="lcm")
        info = api.dataset_info(repo, revision=REVISION)
        names = [file.rfilename for file in info.siblings or ()]
        config = _choose(config, {n.split("/")[0] for n in names if n.count("/") == 2}, repo)
        _choose(split, {n.split("/")[1] for n in names if n.startswith(f"{config}/")}, repo)
        snapshot = snapshot_download(
            repo,
            repo_type="dataset",
            revision=REVISION,
            allow_patterns=[f"{config}/{split}/*.parquet"],
            endpoint=endpoint(),
            cache_dir=hub_cache(),
            library_name="lcm",
        )
    return Path(snapshot) / config / split


def _choose(name: str, available: set[str], repo: str) -> str:
    """Return the config or split called `name`, or the only one if `name` is empty.

    Raises UsageError, listing the available ones, if it does not exist or must be named.
    """
    if name in available:
        return name
    if not name and len(available) == 1:
        return next(iter(available))
    names = nearest(name, available) or sorted(available)
    hint = f"name one, as in {repo}:{names[0]}; there are {', '.join(names[:60])}" if names else ""
    raise UsageError(f"{repo} has no {name!r}" if name else f"{repo} has several parts", hint)
