"""What the concepts of a row group say, as token ids: read only for models that learn from tokens.

Shapes: R rows, S sentences.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcm_cli.errors import IntegrityError, LcmError

Tokens = NDArray[np.int32]  # of a sentence: [language] x </s>
# Sentences and their language, "" where the data do not say, to the tokens of each.
Tokenize = Callable[[Sequence[str], str], list[Tokens]]

LANG = "lang"
NOTHING = np.zeros(0, np.int32)
_SQUARED = 'embed the text again, or learn without it: --set model.loss="squared"'


def read_tokens(
    path: Path,
    group: int,
    names: Sequence[str],
    ends: NDArray[np.int64],
    rows: Sequence[int],
    tokenize: Tokenize,
    label: Callable[[int], str],
) -> list[Tokens]:
    """Read what all concepts of a row group say; row r has those from `ends[r]` to `ends[r + 1]`.

    The sentences are in the first column there is of `names`; only `rows` are read, the others say
    nothing. Raises IntegrityError, with the `label` of the row, for sentences that are missing, of
    another number, or of a language that the space does not know.
    """
    file = pq.ParquetFile(path, page_checksum_verification=True)
    present = file.schema_arrow.names
    column = next((name for name in names if name in present), None)
    rows = [row for row in rows if ends[row] < ends[row + 1]]
    if column is None and not rows:
        return [NOTHING] * int(ends[-1])
    if column is None:
        raise IntegrityError(f"{path} has concepts and no sentences to learn tokens from", _SQUARED)
    wanted = [column, *([LANG] if LANG in present else [])]
    table = file.read_row_group(group, wanted, use_threads=False)
    tokens = [NOTHING] * int(ends[-1])
    for row in rows:
        begin, end = int(ends[row]), int(ends[row + 1])
        texts = table[column][row].as_py() or []
        if len(texts) != end - begin or None in texts:
            what = f"{end - begin} concepts and {len(texts) - texts.count(None)} sentences"
            raise IntegrityError(f"{label(row)} has {what}", _SQUARED)
        try:
            tokens[begin:end] = tokenize(texts, _language(table, row))
        except LcmError as error:
            raise IntegrityError(f"{label(row)}: {error.message}", error.hint) from error
    return tokens


def _language(table: pa.Table, row: int) -> str:
    return str((table[LANG][row].as_py() if LANG in table.column_names else "") or "")
