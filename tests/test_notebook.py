"""The notebook of the examples, run by a real kernel."""

from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow  # starts a kernel
def test_the_notebook_runs_and_shows_what_it_says() -> None:
    notebook = nbformat.read(EXAMPLES / "concepts.ipynb", 4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []

    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": EXAMPLES}}
    )
    client.execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    for expected in (
        "lost_dog: It was his dog.",  # found by a question in French
        "snow_in_the_mountains: It snowed all night in the mountains.",
        "She bought a new house.",  # one end of the path
        "Ein reicher Mann",  # a sentence of the summary
    ):
        assert expected in printed
    assert "image/png" in outputs[-1]["data"]
