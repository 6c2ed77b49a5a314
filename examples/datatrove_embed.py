"""Filter a web corpus with datatrove and embed what is left, as a data set for `lcm train`.

    pip install lcm-cli 'datatrove[io]'
    python examples/datatrove_embed.py fineweb/ data/ --tasks 64 --workers 8 --space sonar

datatrove divides the files of the folder (JSON Lines, also .gz) among its tasks, and each task
writes one share of the data set. datatrove skips finished tasks when the script is started again;
an unfinished one embeds its share anew. On Slurm, replace LocalPipelineExecutor by
SlurmPipelineExecutor. Then check the result:

    lcm inspect data/ --expect 64
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from datatrove.data import Document as WebDocument
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installation

import lcm_cli
from lcm_cli.documents import Document, open_writer
from lcm_cli.documents.shares import Share, join
from lcm_cli.documents.windows import windows
from lcm_cli.errors import LcmError
from lcm_cli.pipeline import Prepared, embed, prepare_documents, space_info

TOGETHER = 4096  # sentences encoded at a time
LEAST, MOST = 200, 100_000  # characters of a document


class Embed(PipelineStep):
    """The last step of a pipeline: a share of a data set with the documents of the task."""

    name = "lcm embed"
    type = "WRITER"

    def __init__(self, dataset: str, run: dict[str, str], space: str, device: str) -> None:
        super().__init__()
        self.dataset, self.identity, self.space, self.device = dataset, run, space, device

    def run(self, data: Iterable[WebDocument], rank: int = 0, world_size: int = 1) -> None:
        """Embed the documents of a task."""
        space = lcm_cli.load_space(self.space, device=self.device)
        info, share = space_info(space), Share(rank, world_size)
        folder = join(Path(self.dataset), share, self.identity, info, "float16")
        prepared = self.prepared(data, space)
        with open_writer(str(folder), info, force=True, allow_empty=True) as writer:
            for window in windows(prepared, lambda each: each.size, TOGETHER):
                with self.track_time("window"):
                    for each in embed(window, space):
                        writer.write(each.document)
                        self.stat_update("sentences", value=each.size)

    def prepared(self, data: Iterable[WebDocument], space: lcm_cli.Space) -> Iterator[Prepared]:
        """Yield the documents with their sentences, without those in unknown languages."""
        for found in data:
            code, script = (found.metadata.get(key, "") for key in ("language", "language_script"))
            lang = f"{code}_{script}" if script else code  # as in FineWeb 2, and in FineWeb
            document = Document(found.id, text=found.text, lang=lang)
            try:
                yield prepare_documents(document, space.languages, space.name)
            except LcmError:
                self.stat_update("skipped")


def main(given: argparse.Namespace) -> None:
    """Run the pipeline."""
    steps = [
        JsonlReader(given.folder),
        LambdaFilter(lambda document: LEAST <= len(document.text) <= MOST),
        Embed(given.dataset, {"folder": given.folder}, given.space, given.device),
    ]
    executor = LocalPipelineExecutor(
        steps, tasks=given.tasks, workers=given.workers, logging_dir=f"{given.dataset}.logs"
    )
    executor.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of JSON Lines with a text and an id each")
    parser.add_argument("dataset", help="folder of the data set to write")
    parser.add_argument("--tasks", type=int, default=1, help="number of shares")
    parser.add_argument("--workers", type=int, default=1, help="tasks that run at a time")
    parser.add_argument("--space", default="tiny", help="space of the concepts")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    main(parser.parse_args())
