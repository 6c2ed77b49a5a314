"""The endpoint /similar: search in the indexes that the server has loaded."""

from typing import Any

import numpy as np

from lcm_cli.pipeline import embed, find_languages
from lcm_cli.search.corpus import Hit, merged
from lcm_cli.serving.languages import AUTO
from lcm_cli.serving.requests import Fields, RefusedError, refusing
from lcm_cli.serving.service import Service
from lcm_cli.writing.links import hide

MOST_HITS = 1000


def similar(service: Service, fields: Fields) -> dict[str, Any]:
    """Return the sentences nearest in meaning to a text, also in the languages `to`."""
    fields.only("text", "lang", "k", "to")
    if not service.indexes:
        raise RefusedError(404, "this server has no index")
    count = fields.integer("k", 5, 1, MOST_HITS)
    with refusing():
        codes = find_languages(fields.texts("to"), service.space.languages, service.space.name)
    query = service.prepare(fields.text("text"), fields.text("lang", AUTO))
    service.check_size(query.size + count * len(codes))
    (query,) = embed([query], service.space)
    query_1D = query.concepts.mean(axis=0, keepdims=True)
    results = [
        index.search(query_1D, count, exact=not index.has_graph) for index in service.indexes
    ]
    (hits,) = merged(results, count)
    texts = _texts(service, hits, codes)
    return {
        "lang": query.document.lang,
        "results": [_result(hit) | {"texts": own} for hit, own in zip(hits, texts, strict=True)],
    }


def _texts(service: Service, hits: list[Hit], codes: list[str]) -> list[dict[str, str]]:
    """Return each sentence found by language code: its own text, or decoded."""
    texts = [{code: hit.text for code in codes} for hit in hits]
    for code in codes:
        rows = [n for n, hit in enumerate(hits) if hit.lang != code or not hit.text]
        if rows:
            concepts = np.stack([hits[n].concept for n in rows])
            sentences, langs = [hits[n].text for n in rows], [hits[n].lang for n in rows]
            masks, concepts = hide(sentences, langs, concepts, service.space)
            found = service.space.decode(concepts, [code])
            for n, masked, best in zip(rows, masks, found[code], strict=True):
                texts[n][code] = masked.restore(best[0].text)
    return texts


def _result(hit: Hit) -> dict[str, Any]:
    return {
        "score": round(hit.score, 4),
        "id": hit.document,
        "index": hit.number,
        "lang": hit.lang,
        "text": hit.text,
    }
