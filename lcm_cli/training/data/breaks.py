"""Paragraph breaks and plans, inserted between the sentences of documents.

Shapes: R documents of a row group, N concepts of all of them.
"""

from collections.abc import Sequence

import numpy as np

from lcm_cli.text.paragraphs import order
from lcm_cli.training.data.columns import Column
from lcm_cli.training.data.row_groups import (
    PARAGRAPHS,
    ConceptLists,
    Ints,
    RowGroup,
    Sentences,
    join,
    read_row_group,
)


def insert_breaks(
    lists: ConceptLists,
    group: RowGroup,
    documents: Ints,
    break_sentence: Sentences,
    columns: Sequence[Column],
) -> ConceptLists:
    """Return the concepts of a row group, with breaks and plans in some of its `documents`.

    `break_sentence` is the one sentence that ends each paragraph. Plans are inserted if the file
    has any.
    """
    plans = _plans(lists, group, documents, break_sentence, columns)
    paragraphs = group.read([PARAGRAPHS])[PARAGRAPHS] if PARAGRAPHS in group.names else None
    # All sentences, then all plans, then the break: rows of one array that documents gather from.
    flat = join([lists.flat, plans.flat, break_sentence], lists.flat.concepts_SD.dtype)
    chosen, gathered = set(documents.tolist()), []
    for number, (begin, end) in enumerate(zip(lists.ends[:-1], lists.ends[1:], strict=True)):
        own = np.arange(begin, end)
        if number in chosen:
            own_plans = np.arange(*plans.ends[number : number + 2]) + len(lists.flat)
            numbers = None if paragraphs is None else paragraphs[number].as_py()
            own = np.concatenate([own, own_plans, [len(flat) - 1]])
            # `order` returns indices into sentences, plans and break; the break's may recur.
            own = own[order(numbers or [], end - begin, len(own_plans))]
        gathered.append(own)
    ends = np.cumsum([0, *map(len, gathered)])
    return ConceptLists(flat.take(np.concatenate(gathered)), ends)


def _plans(
    lists: ConceptLists,
    group: RowGroup,
    documents: Ints,
    break_sentence: Sentences,
    columns: Sequence[Column],
) -> ConceptLists:
    """Read the plans of all documents, with the columns of those in `documents`."""
    ends, concepts_ND = np.zeros_like(lists.ends), lists.flat.concepts_SD[:0]
    if group.plans:
        dim = break_sentence.concepts_SD.shape[1]
        (found,) = read_row_group(group, [group.plans], dim)
        ends, concepts_ND = found.ends, found.flat.concepts_SD
    values = {
        column.name: column.read(group, "plan", ends, documents, documents) for column in columns
    }
    return ConceptLists(Sentences(concepts_ND, values), ends)
