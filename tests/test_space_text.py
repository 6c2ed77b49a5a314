"""examples/space_text: each source in the form its publisher gives it, with invented sentences."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcm_cli.training.data.parallel_text import read_translations

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "space_text"

TATOEBA = """\
The cat sleeps.\t{0}\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 (CK) & #2 (xy)
The cat sleeps.\t{1}\tCC-BY 2.0 (France) Attribution: tatoeba.org #1 (CK) & #3 (xy)
"""
STORYBOOK = """\
# {title}

##
{pages[0]}

##
{pages[1]}

##
* License: [{licence}]
* Text: Ann Example
* Translation: Bob Example
* Language: xx
"""
NOVEL = """\
<TEI xmlns="http://www.tei-c.org/ns/1.0" xml:lang="de"><teiHeader><fileDesc><publicationStmt>
<p>Dies gehört nicht zum Text des Romans.</p></publicationStmt></fileDesc></teiHeader>
<text><body><div type="chapter"><head>Erstes Capitel</head>
<p>Ich wußte nicht, daß <pb/> sie
   in der Thür stand. Nein! »Komm doch herein zu mir!« sagte ich.</p></div></body></text></TEI>
"""
GERMEVAL = """\
#\thttp://de.wikipedia.org/wiki/Beispiel [2009-10-17]
1\tDer\tO\tO
2\tZug\tO\tO
3\t(\tO\tO
4\tblau\tO\tO
5\t)\tO\tO
6\thielt\tO\tO
7\t,\tO\tO
8\tsagt\tO\tO
9\t"\tO\tO
10\tHeute\tB-ORG\tO
11\t"\tO\tO
12\t.\tO\tO

#\thttp://example.org [2009-10-17]
1\tKurz\tO\tO
2\t.\tO\tO
"""
ANCORA = """\
# sent_id = dev-s1
# text = El tren azul llega siempre tarde.
1\tEl\tel\tDET\tDET\t_\t2\tdet\t_\t_

# sent_id = dev-s2
# text = Sin verbo
1\tSin\tsin\tADP\tADP\t_\t0\troot\t_\t_
"""
GUTENBERG = """\
Title: Kleine sprookjes

Language: Dutch

*** START OF THIS PROJECT GUTENBERG EBOOK KLEINE SPROOKJES ***



Produced by Nobody in Particular.



VOORREDE.


Dit is een lang woord vooraf. Het is er. Het is hier. Het is daar. Het is niets.




I.

DE GROOTE VISCH.


Er was eens een groote visch,
die zoo graag wilde zingen. [Illustration]

»Zing dan!« zei de mensch.[1] De visch zong. Hij zong den heelen dag. Toen was hij moe.




*** END OF THIS PROJECT GUTENBERG EBOOK KLEINE SPROOKJES ***

This is the licence. It goes on for long. It is not a tale. It is not read. It is here.
"""
ENGLISH_DOC = """\
---
title: Cards
---
# Working with Cards
You can open a card in [!INCLUDE[prod_short](includes/prod_short.md)]. It has 3 tabs.

> [!NOTE]
> Close the **card** when you are [done](done.md).

## Tables
| A sentence in a table. |
|---|

1. Choose the ![Lamp](media/lamp.png "Lamp") icon, and then enter `Cards`.

## See also
[More Cards](more.md)
"""
GERMAN_DOC = """\
---
title: Karten
ms.locfileid: "1"
---
# <a name="working-with-cards"></a>Arbeiten mit Karten
Sie können eine Karte in [!INCLUDE[prod_short](includes/prod_short.md)] öffnen. Sie hat 4 Reiter.

> [!NOTE]
> Schließen Sie die **Karte**, wenn Sie [fertig](done.md) sind.

## <a name="tables"></a>Tabellen
1. Wählen Sie das Symbol ![Lampe](media/lamp.png "Lampe"), und geben Sie dann `Karten` ein.

## <a name="see-also"></a>Siehe auch
[Mehr Karten](more.md)
"""
SIDE_BY_SIDE = """\
# <span data-ttu-id="a-1">Lijsten</span><span class="sxs-lookup"><span \
data-stu-id="a-1">Lists</span></span>
<span data-ttu-id="a-2">U kunt elke lijst in {0} sorteren.</span><span class="sxs-lookup"><span \
data-stu-id="a-2">You can sort any list in {0}.</span></span>
""".format("[!INCLUDE[prod_short](includes/prod_short.md)]")
VERSES = "Book,Chapter,Verse,Text\n"


def file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def storybook(title: str, *pages: str, licence: str = "CC-BY") -> str:
    return STORYBOOK.format(title=title, pages=pages, licence=licence)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each source as its publisher gives it out."""
    raw = tmp_path_factory.mktemp("raw")
    for name, both in {
        "deu": ("Die Katze schläft.", "Der Kater schläft."),
        "fra": ("Le chat dort.", "La chatte dort."),
    }.items():
        more = "".join(f"Word number {i}.\t{name} {i}.\tCC-BY\n" for i in range(3))
        file(raw / f"tatoeba/{name}.txt", TATOEBA.format(*both) + more.replace("Word", name))
    books = raw / "storybooks"
    file(
        books / "asp-source/en/0500_the-goat.md",
        storybook("The goat", "The goat ran. It was late.", "It slept in the barn."),
    )
    file(
        books / "global-asp/nl/0500_de-geit.md",
        storybook("De geit", "De geit liep weg. Het was laat.", "Zij sliep. In de schuur."),
    )
    file(
        books / "global-asp/de/0501_nein.md", storybook("Nein", "Nie.", "Nie.", licence="CC-BY-NC")
    )
    file(books / "asp-source/en/0066_three.md", storybook("Three", "Kept for testing.", "Yes."))
    file(
        raw / "tinystories/TinyStoriesV2-GPT4-valid.txt",
        "\nOnce there was a bear.\nHe was big.\n<|endoftext|>\nTim had a red ball. He lost it."
        "\n<|endoftext|>\nBad â€œtextâ€ here.\n<|endoftext|>\n",
    )
    bibles = raw / "bible/formats/csv"
    file(bibles / "NHEB.csv", VERSES + 'Ruth,1,1,"He went, and came."\nRuth,1,2,\n')
    file(bibles / "BBE.csv", VERSES + "Ruth,1,1,He went and he came back.\n")
    file(bibles / "NlCanisius1939.csv", VERSES + "Ruth,1,1,Hij ging en kwam.\nRuth,1,2,Leeg.\n")
    file(bibles / "SpaRV.csv", VERSES + f"Ruth,1,1,Y él fue{' y vino' * 20}.\n")
    docs = raw / "business_docs"
    for repository in ("dynamics365smb-docs", "dynamics365smb-docs-pr.de-de"):
        file(
            docs / repository / "business-central/includes/prod_short.md",
            "---\nms.service: x\n---\nBusiness Central\n",
        )
    file(docs / "dynamics365smb-docs/business-central/cards.md", ENGLISH_DOC)
    file(docs / "dynamics365smb-docs-pr.de-de/business-central/cards.md", GERMAN_DOC)
    dutch = docs / "dynamics365smb-docs-pr.nl-nl/business-central"
    file(dutch / "lists.md", SIDE_BY_SIDE)
    file(dutch / "includes/prod_short.md", "Business Central\n")
    file(
        raw / "tico19/test/test.en-fr.tsv",
        "sourceLang\ttargetLang\tsourceString\ttargetString\tstringID\turl\tlicense\ttranslatorId\n"
        "en\tfr\tDo you cough?\tToussez-vous ?\tCMU_1:1\tUnknown\tpublic\t1\n",
    )
    file(
        raw / "tico19/test/test.en-es-LA.tsv",
        "en\tes-LA\tDo you cough?\t¿Tose usted?\tCMU_1:1\tUnknown\tpublic\t1\n",
    )
    file(
        raw / "common_voice/fr/sentence-collector.txt",
        "Il pleut depuis trois jours.\nGrande Rue, zéro un\nIl pleut depuis trois jours.\nOui.\n",
    )
    file(raw / "novels/ELTeC-deu/level1/DEU001.xml", NOVEL)
    file(raw / "germeval/NER-de-test.tsv", GERMEVAL)
    file(raw / "ancora/es_ancora-ud-dev.conllu", ANCORA)
    article = {"id": "7", "title": "La pluie", "abstract": "Il pleut à Lille. Il fait froid."}
    file(raw / "wikinews/test.jsonl", json.dumps({**article, "keyphrases": ["pluie"]}) + "\n")
    file(raw / "gutenberg/pg1.txt", GUTENBERG)
    file(
        raw / "fairytaleqa/data-by-origin/section-stories/grimm-fairybook/the-hen-story.csv",
        'section,text\n1,"""Come here!"" said the hen. The cat came."\n2,They ate a cake.\n',
    )
    return raw


def run(*arguments: object) -> Any:
    call = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, encoding="utf-8")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is made of `raw`, two pairs a language held out."""
    out = tmp_path_factory.mktemp("made")
    done = run(raw, out, "--dev", 2)
    assert done.returncode == 0, done.stderr
    return out


def test_tatoeba_is_grouped_by_the_english_sentence(made: Path) -> None:
    assert rows(made / "tatoeba.jsonl")[0] == {
        "eng_Latn": "The cat sleeps.",
        "deu_Latn": ["Die Katze schläft.", "Der Kater schläft."],
        "fra_Latn": ["Le chat dort.", "La chatte dort."],
    }


def test_dev_pairs_are_nowhere_else(made: Path) -> None:
    dev = rows(made / "dev.jsonl")
    train = (made / "tatoeba.jsonl").read_text(encoding="utf-8")
    assert sorted(next(iter(set(row) - {"eng_Latn"})) for row in dev) == [
        *["deu_Latn"] * 2,
        *["fra_Latn"] * 2,
    ]
    assert len(train.splitlines()) == 3
    assert not any(json.dumps(text) in train for row in dev for text in row.values())


def test_storybooks_are_aligned_across_repositories(made: Path) -> None:
    assert rows(made / "storybooks.jsonl") == [
        {"eng_Latn": "The goat ran.", "nld_Latn": "De geit liep weg."},
        {"eng_Latn": "It was late.", "nld_Latn": "Het was laat."},
        {"eng_Latn": "It slept in the barn."},
        {"nld_Latn": "Zij sliep."},
        {"nld_Latn": "In de schuur."},
    ]
    assert rows(made / "storybook_pages.jsonl") == [
        {"eng_Latn": "The goat ran. It was late.", "nld_Latn": "De geit liep weg. Het was laat."},
        {"eng_Latn": "It slept in the barn.", "nld_Latn": "Zij sliep. In de schuur."},
    ]


def test_business_docs_are_aligned_by_place_or_side_by_side(made: Path) -> None:
    assert rows(made / "business_docs.jsonl") == [
        {
            "eng_Latn": "You can open a card in Business Central.",
            "deu_Latn": "Sie können eine Karte in Business Central öffnen.",
        },
        {
            "eng_Latn": "Close the card when you are done.",
            "deu_Latn": "Schließen Sie die Karte, wenn Sie fertig sind.",
        },
        {
            "eng_Latn": "Choose the icon, and then enter Cards.",
            "deu_Latn": "Wählen Sie das Symbol, und geben Sie dann Karten ein.",
        },
        {
            "eng_Latn": "You can sort any list in Business Central.",
            "nld_Latn": "U kunt elke lijst in Business Central sorteren.",
        },
    ]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "bible",
            [
                {
                    "eng_Latn": ["He went, and came.", "He went and he came back."],
                    "nld_Latn": "Hij ging en kwam.",
                }
            ],
        ),
        (
            "tico19",
            [
                {
                    "eng_Latn": "Do you cough?",
                    "spa_Latn": "¿Tose usted?",
                    "fra_Latn": "Toussez-vous ?",
                }
            ],
        ),
        (
            "tinystories",
            [
                {"eng_Latn": "Once there was a bear."},
                {"eng_Latn": "He was big."},
                {"eng_Latn": "Tim had a red ball."},
                {"eng_Latn": "He lost it."},
            ],
        ),
        ("common_voice", [{"fra_Latn": "Il pleut depuis trois jours."}]),
        (
            "novels",
            [
                {"deu_Latn": "Ich wusste nicht, dass sie in der Tür stand."},
                {"deu_Latn": "»Komm doch herein zu mir!« sagte ich."},
            ],
        ),
        ("germeval", [{"deu_Latn": 'Der Zug (blau) hielt, sagt "Heute".'}]),
        ("ancora", [{"spa_Latn": "El tren azul llega siempre tarde."}]),
        ("wikinews", [{"fra_Latn": "Il pleut à Lille."}, {"fra_Latn": "Il fait froid."}]),
        (
            "gutenberg",
            [
                {"nld_Latn": "Er was eens een grote vis, die zo graag wilde zingen."},
                {"nld_Latn": "»Zing dan!« zei de mens."},
                {"nld_Latn": "De vis zong."},
                {"nld_Latn": "Hij zong de hele dag."},
                {"nld_Latn": "Toen was hij moe."},
            ],
        ),
        (
            "fairytaleqa",
            [
                {"eng_Latn": '"Come here!" said the hen.'},
                {"eng_Latn": "The cat came."},
                {"eng_Latn": "They ate a cake."},
            ],
        ),
    ],
)
def test_each_source(made: Path, name: str, lines: list[dict[str, Any]]) -> None:
    assert rows(made / f"{name}.jsonl") == lines


def test_held_out_sentences_are_in_no_file(raw: Path, tmp_path: Path) -> None:
    held = {
        "sentences": ["he lost it", "De geit liep weg."],
        "note": ["El tren azul llega siempre tarde."],
    }
    file(tmp_path / "held.jsonl", json.dumps(held) + "\n")
    file(tmp_path / "held.tsv", "1\tThey ate a cake!\n")
    out = tmp_path / "out"
    done = run(raw, out, "--held-out", tmp_path / "held.jsonl", tmp_path / "held.tsv")
    assert done.returncode == 0, done.stderr
    assert not (out / "dev.jsonl").exists()
    everything = "".join(path.read_text(encoding="utf-8") for path in out.iterdir())
    for text in ("He lost it", "De geit liep weg", "El tren azul", "They ate a cake"):
        assert text not in everything
    assert rows(out / "storybooks.jsonl")[0] == {"eng_Latn": "The goat ran."}
    assert rows(out / "ancora.jsonl") == []


def test_it_is_the_same_each_time(raw: Path, made: Path, tmp_path: Path) -> None:
    run(raw, tmp_path, "--dev", 2)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in made.iterdir()
    }


def test_stories_are_whole(raw: Path, tmp_path: Path) -> None:
    done = run(raw, tmp_path, "--stories")
    assert done.returncode == 0, done.stderr
    stories = {row["id"]: row for row in rows(tmp_path / "stories.jsonl")}
    assert stories["asp-0500-nld"] == {
        "id": "asp-0500-nld",
        "lang": "nld_Latn",
        "title": "De geit",
        "sentences": ["De geit liep weg.", "Het was laat.", "Zij sliep.", "In de schuur."],
        "licence": "CC-BY-4.0",
        "attribution": "text: Ann Example; translation: Bob Example",
        "split": stories["asp-0500-eng"]["split"],
    }
    assert stories["asp-0066-eng"]["split"] == "test"
    assert stories["pg1-001"]["title"] == "De grote vis"
    assert len(stories["pg1-001"]["sentences"]) == 5
    assert stories["ftqa-the-hen"]["title"] == "The hen"
    assert stories["tiny-00002"]["sentences"] == ["Tim had a red ball.", "He lost it."]


def test_sources_are_told_with_their_terms() -> None:
    done = run("--sources")
    assert done.returncode == 0
    for name in ("tatoeba", "storybooks", "bible", "gutenberg", "germeval"):
        assert f"\n{name}: " in "\n" + done.stdout
    assert "CC-BY 2.0 FR" in done.stdout


def test_without_any_source_it_says_what_to_do(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert "--sources" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_source_of_another_form_is_named(tmp_path: Path) -> None:
    file(tmp_path / "raw/bible/NHEB.csv", "b,c,v,t\n1,1,1,In the beginning.\n")
    done = run(tmp_path / "raw", tmp_path / "out")
    assert done.returncode == 1
    assert "bible is not in its publisher's format: KeyError('Text')" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"space_text_{name}", SCRIPT / f"{name}.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    "pieces",
    [
        ["Mr. Brown came on the 3. of May.", "He left."],
        ["« Bonjour ! »", "Elle rit."],
        ["»Nein.«", "»Doch!« rief er.", "Er ging."],
        ["“Oh,” he said.", "“Yes!” she cried."],
        ["¿Qué?", "¡No!", "Sí."],
        ["And … so?", '"A cat."', '"Two dogs."'],
    ],
)
def test_sentences(pieces: list[str]) -> None:
    assert module("clean").sentences("  ".join(pieces)) == pieces


@given(st.text(alphabet="Ab c.!?»«“\"'\n 1Éß", max_size=60))
def test_sentences_lose_nothing(text: str) -> None:
    clean = module("clean")
    assert "".join("".join(clean.sentences(text)).split()) == "".join(clean.tidy(text).split())


def test_lcm_train_reads_what_is_made(made: Path) -> None:
    paths = (made / "storybooks.jsonl", made / "novels.jsonl")
    lines = [line for path in paths for line in read_translations(path)]
    assert len(lines) == 7
