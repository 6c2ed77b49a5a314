"""Evaluate a space with mteb on local files: find each sentence's translation.

    python examples/mteb_local.py           # the bundled space
    python examples/mteb_local.py sonar

Prints one line per pair of languages: the share of sentences whose translation is the nearest
sentence of the other language. Needs mteb 2, in an environment of its own: see docs/search.md.

`SpaceEncoder` works with every task of mteb, also with `mteb.get_tasks`, which downloads its data.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from lcm_cli import SentenceEncoder, Space, load_space

STORIES = Path(__file__).parent / "eval_parallel.jsonl"
LANGUAGES = ("deu_Latn", "nld_Latn", "spa_Latn")
PAIRS = {f"{a}-{b}": [a, b] for a, b in itertools.permutations(LANGUAGES, 2)}


class SpaceEncoder(AbsEncoder):
    """A space as mteb calls models: with batches of rows and the metadata of the task."""

    def __init__(self, space: Space) -> None:
        self.model = SentenceEncoder(space)
        about = {"name": f"lcm/{space.name}", "revision": space.fingerprint}
        self.mteb_model_meta = ModelMeta.create_empty(about)

    def encode(
        self, inputs: Any, *, task_metadata: TaskMetadata, hf_subset: str, **options: Any
    ) -> Any:
        """Return the concepts of the texts in `inputs`, an iterable of batches."""
        kept = {k: options[k] for k in ("batch_size", "show_progress_bar") if k in options}
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts, lang=self._language(task_metadata, hf_subset), **kept)

    def _language(self, task: TaskMetadata, subset: str) -> str | None:
        """Return the language of a subset if it has just one, else None: detect each text's."""
        known = self.model.space.languages
        if subset in known:  # in tasks with one column per language
            return subset
        found = task.hf_subsets_to_langscripts.get(subset, [])
        code = found[0].replace("-", "_") if len(found) == 1 else ""
        return code if code in known else None


class Stories(AbsTaskBitextMining):
    """Sentences of children's stories in three languages."""

    parallel_subsets = True
    metadata = TaskMetadata(
        name="Stories",
        description="Find the translation of sentences of children's stories.",
        type="BitextMining",
        dataset={"path": "local", "revision": "1"},
        eval_langs={
            pair: [code.replace("_", "-") for code in codes] for pair, codes in PAIRS.items()
        },
        main_score="accuracy",
    )

    def load_data(self, *_: Any, **__: Any) -> None:
        """Read the file beside this script instead of the Hub."""
        lines = STORIES.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        columns = {code: [row[code] for row in rows] for code in LANGUAGES}
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


def evaluate(source: str) -> dict[str, float]:
    """Return the accuracy for each pair of languages."""
    encoder = SpaceEncoder(load_space(source))
    found = mteb.evaluate(encoder, Stories(), cache=None, show_progress_bar=False)
    return {each["hf_subset"]: each["accuracy"] for each in found.task_results[0].scores["test"]}


if __name__ == "__main__":
    for pair, accuracy in evaluate(*(sys.argv[1:] or ["tiny"])).items():
        print(f"{pair}  {accuracy:.3f}")
