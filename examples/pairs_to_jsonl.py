"""Turn tab-separated sentence pairs into training data for a space (lcm train, kind = "space").

Each input has a sentence and its translation in the first two columns, as Tatoeba's pairs from
manythings.org/anki do. Pairs that share the first sentence become one line of several languages:

    python examples/pairs_to_jsonl.py eng_Latn deu_Latn=deu.txt fra_Latn=fra.txt > train.jsonl
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path


def main(pivot: str, *sources: str) -> None:
    """Read the sources, CODE=FILE each, and write the lines in random order."""
    translations: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for source in sources:
        code, _, path = source.partition("=")
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            sentence, translation, *_ = line.split("\t")
            translations[sentence][code].append(translation)
    lines = []
    for sentence, by_code in translations.items():
        for number in range(max(map(len, by_code.values()))):
            others = {code: t[number] for code, t in by_code.items() if number < len(t)}
            lines.append({pivot: sentence, **others})
    random.Random(0).shuffle(lines)
    for fields in lines:
        print(json.dumps(fields, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
