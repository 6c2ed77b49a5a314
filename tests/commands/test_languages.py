"""The command lcm languages."""

import json


def test_table(lcm):
    lines = lcm("languages").stdout.splitlines()
    assert len(lines) == 203
    assert lines[0].split() == ["code", "name", "own", "name", "script", "ISO", "639", "spaces"]
    french = next(line for line in lines if line.startswith("fra_Latn"))
    assert french.split() == [
        "fra_Latn",
        "French",
        "français",
        "Latin",
        "fra",
        "fr",
        "sonar",
        "tiny",
    ]


def test_query(lcm):
    assert [line.split()[0] for line in lcm("languages", "kurd").stdout.splitlines()[1:]] == [
        *("ckb_Arab", "kmr_Latn")
    ]
    assert lcm("languages", "zh-TW").stdout.splitlines()[1].startswith("zho_Hant")


def test_json(lcm):
    found = [json.loads(line) for line in lcm("languages", "--json").stdout.splitlines()]
    assert len(found) == 202
    french = next(one for one in found if one["code"] == "fra_Latn")
    spaces = french.pop("spaces")
    assert {"tiny", "sonar"} <= set(spaces)
    assert french == {
        "code": "fra_Latn", "name": "French", "autonym": "français", "script": "Latn",
        "script_name": "Latin", "iso639_3": "fra", "iso639_1": "fr",
    }  # fmt: skip


def test_unknown(lcm):
    done = lcm("languages", "frx")
    assert done.code == 3 and not done.stdout
    assert "unknown language 'frx'" in done.stderr
    assert "did you mean French (fra_Latn)" in done.stderr
