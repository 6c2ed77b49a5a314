"""The endpoints for OpenAI's clients: /v1/embeddings and /v1/models."""

import base64
from typing import Any

import numpy as np

from lcm_cli.serving.languages import AUTO
from lcm_cli.serving.requests import Fields, RefusedError
from lcm_cli.serving.service import Service


def models(service: Service) -> dict[str, Any]:
    """List the space and the concept model."""
    names = [service.name, *([service.model.name] if service.model else [])]
    listed = [
        {"id": name, "object": "model", "created": 0, "owned_by": "lcm"}
        for name in dict.fromkeys(names)
    ]
    return {"object": "list", "data": listed}


def embeddings(service: Service, fields: Fields) -> dict[str, Any]:
    """Encode each input as one sentence, whose concept is the embedding."""
    space = service.space
    if fields.text("model", service.name) != service.name:
        message = f"there is no embedding model of this name; this server has {service.name}"
        raise RefusedError(404, message)
    encoding = fields.choice("encoding_format", ("float", "base64"))
    if fields.integer("dimensions", space.dim, 1, 1 << 20) != space.dim:
        raise RefusedError(400, f"the embeddings of {service.name} have {space.dim} dimensions")
    texts = _inputs(fields)
    service.check_size(len(texts))
    query = fields.text("lang", AUTO)
    codes = [service.guess(query, text).code for text in texts]
    tokens = [len(row) for row in space.tokenize(texts, codes)]
    limit = space.encoder.config.max_length
    for n, count in enumerate(tokens):
        if count > limit:
            message = f"input {n} has {count} tokens; {service.name} reads at most {limit}"
            raise RefusedError(400, message)
    concepts_SD = space.encode(texts, codes).concepts
    data = [
        {"object": "embedding", "index": n, "embedding": _written(row_D, encoding), "lang": code}
        for n, (row_D, code) in enumerate(zip(concepts_SD, codes, strict=True))
    ]
    usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    return {"object": "list", "data": data, "model": service.name, "usage": usage}


def _inputs(fields: Fields) -> list[str]:
    given = fields.get("input")
    first = next(iter(given), None) if isinstance(given, list) else given
    if isinstance(first, int | list):
        raise RefusedError(400, "'input' must be text; this server does not take token ids")
    texts = fields.texts("input")
    if not texts:
        raise RefusedError(400, "'input' must be a string or a list of strings")
    if "" in texts:
        raise RefusedError(400, "'input' must not contain an empty string")
    return texts


def _written(row_D: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(row_D.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = row_D.astype(float).tolist()
    return numbers
