"""lcm evaluate, from the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "examples" / "eval.jsonl"
PARALLEL = ROOT / "examples" / "eval_parallel.jsonl"
NAMES = ("extractive", "lead-3", "random-3")
REST = ("--task", "summarize", "--data", DATA, "--limit", "3")
SUMMARIZE = ("evaluate", *NAMES, *REST)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def report(lcm, tmp_path):
    """Return the folder of a report on the first three examples."""
    result = lcm(*SUMMARIZE, "-o", tmp_path / "report")
    assert result.code == 0, result.stderr
    return tmp_path / "report"


def test_a_table_and_a_report(report):
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["data"]["rows"] == 3 and metrics["seed"] == 0
    assert metrics["systems"]["lead-3"] == {
        "kind": "baseline",
        "method": "lead",
        "length": "3 sentences",
    }
    assert {"rougeL", "ovl3", "ovl_lcm", "source_coverage", "bleu"} <= {
        each["metric"] for each in metrics["results"]
    }
    assert "nrefs:1" in metrics["signatures"]["deu_Latn"]["bleu"]
    examples = lines(report / "examples.jsonl")
    assert len(examples) == 9
    lead = next(e for e in examples if e["system"] == "lead-3")
    assert lead["prediction"] == lead["source"][:3] and lead["cited"] == [1, 2, 3]
    assert lead["scores"]["citation_precision"] == 1
    assert sorted(path.name for path in report.iterdir()) == [
        "examples.jsonl",
        "metrics.json",
        "report.html",
        "summarize-languages.png",
        "summarize-length.png",
        "summarize-map.png",
    ]


def test_the_page_is_self_contained_and_shows_every_prediction(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href|action)\s*=\s*["\']?([^"\'\s>]+)', page)
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count("<svg") == 3 and "Two-Tower-7B-IT" in page
    for example in lines(report / "examples.jsonl"):
        assert example["prediction"][0].split()[0] in page


@pytest.mark.slow
def test_the_same_call_gives_the_same_files_and_a_finished_report_is_kept(lcm, report, tmp_path):
    again = tmp_path / "again"
    assert lcm(*SUMMARIZE, "-o", again).code == 0
    for path in report.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    refused = lcm(*SUMMARIZE, "-o", report)
    assert refused.code == 2 and "--force" in refused.stderr
    assert lcm(*SUMMARIZE, "--force", "-o", report).code == 0


@pytest.mark.slow
def test_a_stopped_run_is_resumed(lcm, surroundings, tmp_path, forks):
    folder, whole = tmp_path / "stopped", tmp_path / "whole"
    long = (*SUMMARIZE, "--limit", "20")  # so that the signal finds it at work
    assert lcm(*long, "-o", whole).code == 0
    process = forks.start(*long, "-o", folder, env=surroundings)
    work = folder / ".work.jsonl"
    while process.poll() is None and not (work.exists() and b"\n" in work.read_bytes()):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert [path.name for path in folder.iterdir()] == [".work.jsonl"]
    result = lcm(*long, "-o", folder)
    assert result.code == 0 and "already done" in result.stderr
    for path in whole.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_tasks_of_the_concepts_and_of_the_space(lcm):
    tasks = ("--task", "next-concept", "--task", "roundtrip", "--task", "translate")
    result = lcm("evaluate", "copy-last", "mean", "tiny", *tasks, "--data", DATA, "--limit", "2",
                 "--json")  # fmt: skip
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)["results"]
    by_metric = {(e["task"], e["system"], e["metric"]): e["value"] for e in found}
    # A copy of the last sentence is as near as possible to the text before, so PAR is above 1.
    assert by_metric["next-concept", "copy-last", "par"] > 1
    assert by_metric["next-concept", "mean", "l2"] < by_metric["next-concept", "copy-last", "l2"]
    calm, noisy = (by_metric["roundtrip", "tiny", name] for name in ("chrf", "noisy_chrf"))
    assert 0 < noisy < calm + 10


def test_parallel_rows_are_translated_and_retrieved(lcm):
    result = lcm("evaluate", "tiny", "--task", "roundtrip", "--task", "translate", "--data",
                 PARALLEL, "--limit", "6", "--json")  # fmt: skip
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)["results"]
    pairs = {(e["task"], e["lang"]) for e in found}
    assert ("translate", "deu_Latn-nld_Latn") in pairs
    assert ("roundtrip", "deu_Latn-spa_Latn") in pairs
    xsim = {e["lang"]: e["value"] for e in found if e["metric"] == "xsim"}
    assert set(xsim) == {"spa_Latn-deu_Latn", "nld_Latn-deu_Latn"}
    assert all(50 < value <= 100 for value in xsim.values())


@pytest.mark.slow
def test_summaries_in_other_languages_have_no_reference(lcm):
    result = lcm(*SUMMARIZE, "--to", "French", "--to", "de", "--json")
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)["results"]
    rouge = {e["lang"] for e in found if e["metric"] == "rougeL"}
    assert rouge == {"deu_Latn", "all"}
    assert {e["lang"] for e in found} > {"deu_Latn-fra_Latn"}


def test_a_broken_row_is_reported_and_the_rest_evaluated(lcm, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = DATA.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([good[0], "{", good[1]]), encoding="utf-8")
    result = lcm("evaluate", "lead-3", "--task", "summarize", "--data", path, "--json")
    assert result.code == 1 and "row 2" in result.stderr
    about = json.loads(result.stdout)["data"]
    assert (about["rows"], about["broken"]) == (2, 1)


def test_missing_references_are_reported(lcm, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"lang": "en", "text": "The cat sleeps. It is late. Tom is here."}\n')
    result = lcm("evaluate", "lead-1", "--task", "summarize", "--data", path, "--json")
    assert result.code == 0 and "1 of 1 rows have no reference" in result.stderr
    names = {e["metric"] for e in json.loads(result.stdout)["results"]}
    assert "word_ratio" in names and not names & {"rougeL", "chrf", "bleu"}


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (("lead-3", "--task", "sumarize"), 2, "did you mean summarize"),
        (("leed-3", "--task", "summarize"), 3, "lead-3"),
        (("mean", "--task", "summarize"), 2, "none of mean can do summarize"),
        (("lead-3", "mean", "--task", "summarize"), 2, "mean cannot do summarize"),
        (("lead-3", "lead-3", "--task", "summarize"), 2, "named twice"),
        (("lead-0", "--task", "summarize"), 2, "not a length"),
        (("lead-3", "--task", "summarize", "--target-column", "gold"), 2, "its columns are id"),
    ],
)
def test_invalid_calls(lcm, call, code, message):
    result = lcm("evaluate", *call, "--data", DATA, "--limit", "2")
    assert result.code == code and message in result.stderr and result.stdout == ""


@pytest.mark.slow
def test_the_page_looks_right_in_a_browser(lcm, report, tmp_path):
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None and os.environ.get("CI") != "true":
        pytest.skip("there is no Chromium here")
    assert browser, "install it: apt-get install chromium"
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags.append("--window-size=1200,2400")
    page = f"file://{report / 'report.html'}"
    call = [browser, *flags, f"--screenshot={shot}", page]
    subprocess.run(call, check=True, timeout=120, capture_output=True)
    image = Image.open(shot).convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    # The page's background and accent, and the colours of the first two systems in the plots.
    assert {(255, 255, 255), (11, 110, 153), (209, 112, 31)} <= colours
    # Nothing overflows the page: its right margin is white all the way down.
    assert image.crop((1185, 0, 1200, 2400)).getcolors() == [(15 * 2400, (255, 255, 255))]
    dump = [browser, *flags, "--dump-dom", page]
    shown = subprocess.run(dump, check=True, timeout=120, capture_output=True, text=True).stdout
    assert "3 of 3" in shown  # the script ran
