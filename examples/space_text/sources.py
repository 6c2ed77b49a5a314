"""The sources of text: their addresses, files, licences and attributions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One folder of RAW: the files to put there, and their terms."""

    folder: str
    what: str
    where: str
    put: str
    licence: str
    attribution: str


SOURCES = (
    Source(
        "tatoeba",
        "Tatoeba's sentence pairs, English with four languages",
        "https://www.manythings.org/anki/: deu-eng.zip, fra-eng.zip, spa-eng.zip, nld-eng.zip",
        "deu.txt, fra.txt, spa.txt, nld.txt",
        "CC-BY 2.0 FR",
        "Tatoeba (tatoeba.org), through manythings.org/anki",
    ),
    Source(
        "storybooks",
        "children's stories of African Storybook and StoryWeaver (Pratham Books), translated",
        "https://github.com/global-asp: asp-source, global-asp, pb-source, global-pb",
        "the four repositories",
        "CC-BY 4.0 or public domain, by story (others are left out)",
        "African Storybook, Global African Storybook Project, Pratham Books; authors by story",
    ),
    Source(
        "tinystories",
        "simple stories in English",
        "https://huggingface.co/datasets/roneneldan/TinyStories: TinyStoriesV2-GPT4-valid.txt",
        "the file",
        "CDLA-Sharing-1.0",
        "TinyStories, Ronen Eldan and Yuanzhi Li",
    ),
    Source(
        "bible",
        "Bible translations, verse by verse",
        "https://github.com/scrollmapper/bible_databases (2025), formats/csv",
        "NHEB, BBE, OEB, GerMenge, FreCrampon, FreSynodale1921, SpaRV, NlCanisius1939, each .csv",
        "public domain; the Open English Bible: CC0",
        "scrollmapper/bible_databases",
    ),
    Source(
        "business_docs",
        "documentation of Dynamics 365 Business Central in five languages",
        "https://github.com/MicrosoftDocs: dynamics365smb-docs, and dynamics365smb-docs-pr.de-de, "
        "-pr.fr-fr, -pr.es-es, -pr.nl-nl",
        "the five repositories, the English one at a commit as old as the translations",
        "CC-BY 4.0",
        "(c) Microsoft Corporation; changed: sentences extracted, markup removed",
    ),
    Source(
        "tico19",
        "texts on health, English with French and Spanish",
        "https://tico-19.github.io: tico19-testset.zip",
        "dev.en-fr.tsv, test.en-fr.tsv, dev.en-es-LA.tsv, test.en-es-LA.tsv",
        "CC0",
        "TICO-19, arXiv 2007.01788",
    ),
    Source(
        "common_voice",
        "sentences for reading aloud",
        "https://github.com/common-voice/common-voice, server/data, at a commit that has it",
        "the folders en, de, fr, es, nl",
        "CC0",
        "Mozilla Common Voice",
    ),
    Source(
        "novels",
        "novels of 1840 to 1920",
        "https://github.com/COST-ELTeC: ELTeC-eng, ELTeC-deu, ELTeC-fra, ELTeC-spa "
        "(doi 10.5281/zenodo.3462435)",
        "the four repositories",
        "texts public domain, markup CC-BY 4.0",
        "European Literary Text Collection (ELTeC), COST Action CA16204",
    ),
    Source(
        "germeval",
        "German news and Wikipedia",
        "https://sites.google.com/site/germeval2014ner/data",
        "NER-de-dev.tsv, NER-de-test.tsv",
        "CC-BY 4.0",
        "GermEval 2014 NER: Benikova, Biemann, Reznicek",
    ),
    Source(
        "ancora",
        "Spanish news",
        "https://github.com/UniversalDependencies/UD_Spanish-AnCora",
        "es_ancora-ud-dev.conllu, es_ancora-ud-test.conllu",
        "CC-BY 4.0",
        "AnCora, UD_Spanish-AnCora: Taulé, Martí, Recasens",
    ),
    Source(
        "wikinews",
        "a hundred articles of the French Wikinews",
        "https://huggingface.co/datasets/taln-ls2n/wikinews-fr-100: test.jsonl",
        "the file",
        "CC-BY 2.5",
        "contributors of the French Wikinews",
    ),
    Source(
        "gutenberg",
        "fables and tales in five languages",
        "https://www.gutenberg.org/ebooks/NUMBER: Plain Text UTF-8",
        "the books with the numbers below",
        "public domain",
        "Project Gutenberg",
    ),
    Source(
        "fairytaleqa",
        "278 tales in English",
        "https://github.com/uci-soe/FairytaleQAData",
        "the repository",
        "Apache-2.0; texts public domain",
        "FairytaleQA, Xu et al. 2022",
    ),
)

# The numbers of books of fables and tales in Project Gutenberg, by language.
BOOKS = {
    "English": (
        "21 28 473 503 540 572 640 641 1597 2435 2591 3027 3282 4018 4324 5314 5615 6746 "
        "7128 7277 7439 7518 7841 7885 11027 11339 13815 14127 14241 14640 14668 14766 "
        "15528 15659 15946 16663 17860 18442 18626 18630 18652 18656 18662 18732 18953 "
        "19068 19994 20097 20716 21078 21203 21322 21619 24714 26019 26711 27200 27826 "
        "28932 29939 32217 38025 38070 38112 38339 38488 43336 43558 62514 71019"
    ),
    "German": (
        "19163 21658 22516 23393 23787 31114 35794 38972 40327 42900 45189 47734 49738 "
        "58520 63465 67897 69456 69864 69949 70435"
    ),
    "French": (
        "12072 12120 12250 12251 12338 13024 14069 14247 14258 14309 14310 15458 15626 "
        "18244 18245 18873 20079 23954"
    ),
    "Spanish": "15353 19898 22065 63424 69164",
    "Dutch": (
        "10971 15163 16725 19544 22555 25580 27489 29712 41240 46263 51345 51763 52415 52549 53367"
    ),
}
