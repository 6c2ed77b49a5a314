"""The files that `lcm translate` writes: their names, formats, and what is refused."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lcm_cli.commands._result import OutputKind, Result
from lcm_cli.documents import Document
from lcm_cli.errors import UsageError

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "formats"
Run = Callable[..., Any]


@pytest.fixture
def translate(road: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `lcm translate --from en` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **rest: road("translate", "--from", "en", *arguments, **rest)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write(tmp_path / "in" / "a.md", "# Head\n\n`code`\n\nThe hen ran.\n")


def names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file()
    )


def test_a_folder(translate: Run, page: Path, tmp_path: Path) -> None:
    done = translate(page, "--to", "fr", "--to", "spa", "-o", "new/")
    assert done.code == 0, done.stderr
    assert names(tmp_path / "new") == ["a.es.md", "a.fr.md"]
    text = (tmp_path / "new" / "a.fr.md").read_text("utf-8")
    assert text.startswith("# ") and "\n\n`code`\n\n" in text
    assert "wrote new/a.fr.md" in done.stderr and done.stdout == ""


def test_existing_files(translate: Run, page: Path, tmp_path: Path) -> None:
    old = write(tmp_path / "new" / "a.fr.md", "old")
    done = translate(page, "--to", "fr", "-o", "new")
    assert done.code != 0 and "exists already" in done.stderr and "--force" in done.stderr
    assert old.read_text() == "old"
    assert translate(page, "--to", "fr", "-o", "new", "--force").code == 0
    assert old.read_text("utf-8").startswith("# ")


def test_a_template(translate: Run, page: Path, tmp_path: Path) -> None:
    template = "{code}/{stem}{ext}"
    assert translate(page, "--to", "fr", "-o", "n{e}w/", "--output-template", template).code == 0
    assert names(tmp_path / "n{e}w") == ["fra_Latn/a.md"]


def test_a_folder_where_one_file_is_written(road: Run, tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "The hen ran.\n")
    (tmp_path / "new").mkdir()
    done = road("mine", text, text, "--from", "en", "-o", f"{tmp_path}/new/")
    assert (done.code, done.stdout) == (2, "") and "is a folder" in done.stderr


@pytest.mark.parametrize("template", ["{name}.md", "{0}", "{", "{stem.x}"])
def test_a_template_with_an_unknown_field(translate: Run, page: Path, template: str) -> None:
    done = translate(page, "--to", "fr", "-o", "new/", "--output-template", template)
    assert done.code == 2 and "is not a template" in done.stderr and "{stem}" in done.stderr


def test_inputs_with_the_same_name(translate: Run, tmp_path: Path) -> None:
    paths = [write(tmp_path / "in" / folder / "a.txt", "The hen ran.") for folder in ("x", "y")]
    done = translate(*paths, "--to", "fr", "-o", "new/")
    assert done.code != 0 and "would both be written to" in done.stderr
    assert names(tmp_path / "new") == ["a.fr.txt"]  # the first one
    assert translate(tmp_path / "in", "--to", "fr", "-o", "all/").code == 0
    assert names(tmp_path / "all") == ["x/a.fr.txt", "y/a.fr.txt"]


def test_two_languages_in_one_file(translate: Run, page: Path) -> None:
    done = translate(page, "--to", "fr", "--to", "de", "-o", "new.md")
    assert done.code != 0 and "can hold only one document in one language" in done.stderr
    assert not Path("new.md").exists()
    template = ("-o", "new/", "--output-template", "{stem}{ext}")
    done = translate(page, "--to", "fr", "--to", "de", *template)
    assert done.code != 0 and "in German and" in done.stderr and "{code}" in done.stderr


def test_one_file_and_a_template(translate: Run, page: Path) -> None:
    done = translate(page, "--to", "fr", "-o", "new.md", "--output-template", "{stem}.md")
    assert done.code == 2 and "is one file" in done.stderr


@pytest.mark.parametrize("id", ["../../x", "/etc/x", "..", "a/../../x", "C:\\x", "\x00\n", ""])
def test_ids_stay_below_the_folder(translate: Run, tmp_path: Path, id: str) -> None:
    path = write(tmp_path / "in.jsonl", json.dumps({"id": id, "text": "The hen ran."}))
    done = translate(path, "--to", "fr", "-o", "new/")
    assert done.code == 0, done.stderr
    assert len(names(tmp_path / "new")) == 1
    assert names(tmp_path) == sorted(["in.jsonl", "new/" + names(tmp_path / "new")[0]])


@pytest.mark.parametrize(
    "name", sorted(path.name for path in SAMPLES.glob("[a-z]*.*") if path.suffix != ".md")
)
def test_every_format(translate: Run, tmp_path: Path, name: str) -> None:
    table = name.rpartition(".")[2] in ("csv", "tsv", "json", "jsonl")
    column = ("--column", "text") if table else ()
    done = translate(SAMPLES / name, "--to", "fr", "-o", "new/", *column)
    assert done.code == 0, done.stderr
    (new,) = names(tmp_path / "new")
    assert new == Path(name).stem + ".fr" + Path(name).suffix.replace(".pdf", ".md")


def test_one_file_has_the_format_of_the_input(translate: Run, tmp_path: Path) -> None:
    assert translate(SAMPLES / "film.srt", "--to", "fr", "-o", "new.srt").code == 0
    data = Path("new.srt").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf1\r\n00:00:01,000 --> 00:00:02,000\r\n")
    done = translate(SAMPLES / "film.srt", "--to", "fr")
    assert done.output == data  # standard output that is not a terminal gets the same bytes


@pytest.mark.parametrize(
    ("name", "output", "held", "suffix"),
    [
        ("a.md", "b.docx", "Markdown", ".md"),
        ("a.md", "b.srt", "Markdown", ".md"),
        ("a.docx", "b.txt", "a Word document", ".docx"),
        ("a.txt", "b.PDF", "text", ".txt"),
    ],
)
def test_a_name_of_another_format(
    translate: Run, tmp_path: Path, name: str, output: str, held: str, suffix: str
) -> None:
    document = tmp_path / "in" / name
    write(document, "The hen ran.\n")
    if suffix == ".docx":
        document.write_bytes((SAMPLES / "report.docx").read_bytes())
    done = translate(document, "--to", "fr", "-o", output)
    assert (done.code, done.stdout) == (2, "")
    assert f"{output} would hold {held}, not " in done.stderr
    assert f"choose a name with the suffix {suffix}" in done.stderr
    assert not (tmp_path / output).exists()
    inside = translate(document, "--to", "fr", "-o", "new/", "--output-template", output)
    assert inside.code == 2 and f"new/{output} would hold {held}" in inside.stderr


def test_a_summary_is_text(road: Run, page: Path, tmp_path: Path) -> None:
    output = tmp_path / "b.docx"
    done = road("summarize", page, "-o", output)
    assert done.code == 2 and f"{output} would hold text, not a Word document" in done.stderr
    assert not output.exists()


def test_json_of_any_format(translate: Run) -> None:
    done = translate(SAMPLES / "report.docx", "--to", "fr", "--to", "de", "--json")
    assert done.code == 0, done.stderr
    assert list(json.loads(done.stdout)["translations"]) == ["fra_Latn", "deu_Latn"]


def test_several_binary_files_on_standard_output(translate: Run) -> None:
    done = translate(SAMPLES / "report.docx", SAMPLES / "book.epub", "--to", "fr")
    assert done.code != 0 and "name a folder" in done.stderr and done.output == b""


def test_binary_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    kind = OutputKind(".docx", is_text=False, plain=False)
    with pytest.raises(UsageError, match="is not written to a terminal"):  # before any translation
        Result().check(Document("a"), kind, ["fra_Latn"], several=False)


def test_the_format_option(translate: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.xyz", "# Head\n\nThe hen ran.\n")
    done = translate(path, "--to", "fr", "--format", "markdown", "-o", "new/")
    assert done.code == 0, done.stderr
    done = translate("-", "--to", "fr", "--format", "html", input=b"<p>The hen <br>ran.")
    assert done.stdout.startswith("<p>") and "<br>" in done.stdout
    assert translate(path, "--to", "fr", "--format", "nothing").code == 2


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("json", '[{"id": 1, "text": "The hen, it ran."}]\n'),
        ("jsonl", '{"id": 1, "text": "The hen, it ran."}\n'),
        ("csv", 'id,text\n1,"The hen, it ran."\n'),
        ("tsv", "id\ttext\n1\tThe hen, it ran.\n"),
    ],
)
def test_the_format_of_a_table(translate: Run, tmp_path: Path, format: str, text: str) -> None:
    path = write(tmp_path / "a.txt", text)
    done = translate(path, "--to", "fr", "--format", format, "--column", "text")
    assert done.code == 0, done.stderr
    before, after = text.split("The hen, it ran.")
    assert done.stdout.startswith(before) and done.stdout.endswith(after)


def test_a_column_of_what_is_not_a_table(translate: Run, page: Path) -> None:
    done = translate(page, "--to", "fr", "--column", "text")
    assert done.code != 0 and "--column is for tables" in done.stderr


@pytest.mark.parametrize(("package", "name"), [("pypdf", "page.pdf"), ("polib", "tool.po")])
def test_a_missing_package(
    translate: Run, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = translate(SAMPLES / name, "--to", "fr")
    assert done.code != 0 and "pip install 'lcm-cli[formats]'" in done.stderr
