"""Where the rows come from: a file, or a data set of the Hugging Face Hub.

The Hub keeps a copy in Parquet of every public data set, under a branch of its own; that is read,
and no code of a data set is run.
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
# What the paper was measured on, by the names that it goes by (LCFO: by its own id).
KNOWN = {
    "cnn_dailymail": "abisee/cnn_dailymail:3.0.0",
    "xsum": "EdinburghNLP/xsum:default",
    "xlsum": "csebuetnlp/xlsum",
}
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?::([\w.-]+))?")


def locate(data: str) -> tuple[str, dict[str, Any]]:
    """Return the path of the rows, and what metrics.json says of them.

    `data` is a path, or ORG/NAME:CONFIG:SPLIT (default the only config, and test); for the sets in
    KNOWN the name will do. Raises NotFoundError for what is neither here nor on the Hub.
    """
    if Path(data).exists():
        path = Path(data)
        return data, {"path": data} | ({"sha256": sha256(path)} if path.is_file() else {})
    name, *rest = data.split(":")
    found = _HUB.fullmatch(":".join([KNOWN.get(name, name), *rest]))
    if found is None or Path(data).suffix in (".jsonl", ".parquet", ".arrow", ".json"):
        return data, {"path": data}  # reading it will say what is near
    repo, config, split = found[1], found[2] or "", found[3] or "test"
    folder = _local(repo, config, split) if offline() else _fetched(repo, config, split)
    about = {"path": data, "repository": repo, "config": folder.parent.name, "split": split}
    return str(folder), about | {"revision": folder.parent.parent.name}


def language_of(about: dict[str, Any]) -> str:
    """Return the language that a data set's config is named after ("german"), or ""."""
    try:
        return find_language(about.get("config", "").replace("_", " ")).code
    except NotFoundError:
        return ""


def _local(repo: str, config: str, split: str) -> Path:
    """Find what was fetched before. Raises NotFoundError if nothing was."""
    snapshots = hub_cache() / f"datasets--{repo.replace('/', '--')}"
    ref = snapshots / "refs" / REVISION
    if ref.is_file():
        commit = snapshots / "snapshots" / ref.read_text(encoding="utf-8").strip()
        for folder in sorted(commit.glob(f"{config or '*'}/{split}")):
            if any(folder.glob("*.parquet")):
                return folder
    raise NotFoundError(
        f"the data set {repo} is not on this machine and lcm is offline",
        "run it once without --offline, or name a file",
    )


def _fetched(repo: str, config: str, split: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    with translated(repo, REVISION, "lcm evaluate"):
        api = HfApi(endpoint=endpoint(), library_name="lcm")
        info = api.dataset_info(repo, revision=REVISION)
        names = [file.rfilename for file in info.siblings or ()]
        config = _chosen(config, {n.split("/")[0] for n in names if n.count("/") == 2}, repo)
        _chosen(split, {n.split("/")[1] for n in names if n.startswith(f"{config}/")}, repo)
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


def _chosen(wanted: str, among: set[str], repo: str) -> str:
    """Return the config or split that is wanted, or the only one."""
    if wanted in among:
        return wanted
    if not wanted and len(among) == 1:
        return next(iter(among))
    names = nearest(wanted, among) or sorted(among)
    hint = f"name it, as in {repo}:{names[0]}; there are {', '.join(names[:60])}" if names else ""
    raise UsageError(f"{repo} has no {wanted!r}" if wanted else f"{repo} has several parts", hint)
