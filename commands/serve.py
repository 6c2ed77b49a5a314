"""lcm serve: an HTTP API and a web page, with a space and a model that stay loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_cli.errors import UsageError

from . import _options as options

if TYPE_CHECKING:
    from lcm_cli.serving.gate import Gate
    from lcm_cli.serving.service import Service

EPILOG = """\
lcm serve

lcm serve --space sonar --port 9000

LCM_API_KEY=secret lcm serve --host 0.0.0.0

curl localhost:8000/translate -d "q=The cat sleeps." -d target=fr
"""


def main(
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 chooses a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="LCM_API_KEY",
            help="Answer only requests with this key.",
            show_default=False,
        ),
    ] = None,
    space: options.Space = None,
    model: options.Model = "auto",
    index: Annotated[
        list[Path] | None,
        typer.Option(
            "--index",
            metavar="INDEX",
            help="Index that /similar searches, from lcm index; repeat for several.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    batch_tokens: options.BatchTokens = None,
) -> None:
    """Serve embeddings, translations and summaries over HTTP, with a page for the browser.

    The space and the model stay loaded, and requests share batches. Clients of OpenAI's embeddings
    and of LibreTranslate work unchanged; docs/serve.md describes all endpoints.
    """
    from lcm_cli.hub.locate import locate_model
    from lcm_cli.search.index import Index

    from ._space import LocatedSpace

    if api_key is not None and not api_key.strip():
        raise UsageError("the API key is empty", "drop --api-key to serve without one")
    located = LocatedSpace(space)
    if model not in ("auto", "extractive"):
        locate_model(model)
    try:
        from lcm_cli.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(f"lcm serve needs {error.name}", "pip install 'lcm-cli[serve]'") from error

    indexes = [Index(folder) for folder in index or ()]

    def load(gate: "Gate") -> "Service":
        from lcm_cli.serving.service import load_service

        loaded = located.load(device, precision, batch_tokens)
        return load_service(
            loaded, model, metrics=gate.metrics, indexes=indexes, precision=precision
        )

    serve(host, port, api_key, load)
