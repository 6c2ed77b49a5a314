"""The endpoints for LibreTranslate's clients: /translate and /detect."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lcm_cli.documents import Document
from lcm_cli.documents.formats import html
from lcm_cli.pipeline import Prepared, embed, prepare_documents
from lcm_cli.serving.languages import AUTO, Guess, guesses, resolve
from lcm_cli.serving.requests import Fields, refusing
from lcm_cli.serving.service import Service
from lcm_cli.serving.streams import Emit, Stream
from lcm_cli.writing.translate import (
    Rendering,
    TranslateOptions,
    Translation,
    threshold,
    translate_all,
)

MOST_ALTERNATIVES = 9
STEP = 16  # sentences in an event of a stream


def detect(service: Service, fields: Fields) -> list[dict[str, Any]]:
    """Return the likely languages of a text, most likely first."""
    found = guesses(fields.text("q"), service.space.languages)
    return [_detected(service, guess) for guess in found]


def translate(service: Service, fields: Fields) -> dict[str, Any] | Stream:
    """Translate one text, or each of a list.

    The format "document", an extension, returns the sentences with their similarity and doubt.
    """
    style = fields.choice("format", ("text", "html", "document"))
    source, target = fields.text("source", AUTO), fields.text("target")
    code = resolve(target, service.space.languages, service.space.name)
    if style == "document":
        return _document(service, fields, source, code)
    many = isinstance(fields.get("q"), list)
    given = fields.texts("q") if many else [fields.text("q")]
    count = fields.integer("alternatives", 0, 0, MOST_ALTERNATIVES)
    found = [service.guess(source, text) for text in given]
    texts = [
        _Html(text, guess.code) if style == "html" else _Lines(text, guess.code)
        for text, guess in zip(given, found, strict=True)
    ]
    _translate(service, texts, code, count)
    answer: dict[str, Any] = {"translatedText": [text.result() for text in texts]}
    if source == AUTO:
        answer["detectedLanguage"] = [_detected(service, guess) for guess in found]
    if count:
        answer["alternatives"] = [text.alternatives(count) for text in texts]
    return answer if many else {key: value[0] for key, value in answer.items()}


def _detected(service: Service, guess: Guess) -> dict[str, Any]:
    return {"confidence": round(100 * guess.share, 1), "language": service.short(guess.code)}


@dataclass
class _Lines:
    """A text whose lines are translated one by one; the breaks between them are kept."""

    text: str
    lang: str
    done: dict[str, Translation | None] = field(default_factory=dict)  # by piece of the text

    @property
    def pieces(self) -> list[str]:
        return self.text.split("\n")

    def result(self, rank: int = 0) -> str:
        """Return the translation, or with `rank` an alternative."""
        return "\n".join(self._said(piece, rank) for piece in self.pieces)

    def alternatives(self, count: int) -> list[str]:
        """Return up to `count` other translations."""
        best = self.result()
        others = dict.fromkeys(self.result(rank) for rank in range(1, count + 1))
        return [other for other in others if other != best]

    def _said(self, piece: str, rank: int) -> str:
        done = self.done.get(piece)
        if done is None:
            return piece
        (code,) = done.sentences
        said = [_alternative(one, rank) for one in done.sentences[code]]
        return replace(done, sentences={code: said}).text(code)


class _Html(_Lines):
    """A piece of HTML whose blocks are translated one by one."""

    def __init__(self, text: str, lang: str) -> None:
        super().__init__(text, lang)
        self._page = html.read(text)

    @property
    def pieces(self) -> list[str]:
        return [passage.text for passage in self._page.passages]

    def result(self, rank: int = 0) -> str:
        lang, pairs = self.lang, []
        for piece in self.pieces:
            done = self.done.get(piece)
            if done is None:
                pairs.append([(piece, piece)])
                continue
            (lang,) = done.sentences
            said = [_alternative(one, rank).text for one in done.sentences[lang]]
            pairs.append(list(zip(done.document.sentences, said, strict=True)))
        return self._page.spliced(pairs, lang)


def _alternative(one: Rendering, rank: int) -> Rendering:
    if not one.candidates:
        return one
    return replace(one, text=one.candidates[min(rank, len(one.candidates) - 1)].text)


def _translate(service: Service, texts: Sequence[_Lines], code: str, alternatives: int) -> None:
    """Translate the pieces of all texts together."""
    wanted = [
        (text, piece)
        for text in texts
        if text.lang != code
        for piece in dict.fromkeys(text.pieces)
        if piece.strip()
    ]
    window = [_prepare(service, piece, text.lang) for text, piece in wanted]
    service.check_size(sum(each.size for each in window))
    window = embed(window, service.space)
    options = TranslateOptions(n_best=alternatives + 1)
    done = translate_all(window, service.space, [code], options)
    for (text, piece), translation in zip(wanted, done, strict=True):
        text.done[piece] = translation


def _prepare(service: Service, text: str, lang: str) -> Prepared:
    document = Document("q", text=text)
    with refusing():
        return prepare_documents(document, service.space.languages, service.space.name, lang)


def _document(service: Service, fields: Fields, source: str, code: str) -> dict[str, Any] | Stream:
    guess = service.guess(source, fields.text("q"))
    prepared = service.prepare(fields.text("q"), guess.code)
    service.check_size(prepared.size)
    about = {
        "detectedLanguage": _detected(service, guess),
        "threshold": threshold(service.space),
        "total": prepared.size,
    }

    def run(emit: Emit) -> None:
        emit("document", about)
        for part in _parts(prepared):
            emit("sentences", {"sentences": _sentences(service, part, code)})
        emit("done", {})

    if fields.flag("stream"):
        return Stream(run)
    return about | {"sentences": _sentences(service, prepared, code)}


def _parts(prepared: Prepared) -> Iterator[Prepared]:
    document = prepared.document
    for start in range(0, len(document.sentences), STEP):
        own = slice(start, start + STEP)
        part = replace(
            document, sentences=document.sentences[own], paragraphs=document.paragraphs[own]
        )
        yield Prepared(part)


def _sentences(service: Service, prepared: Prepared, code: str) -> list[dict[str, Any]]:
    window = embed([prepared], service.space)
    (done,) = translate_all(window, service.space, [code])
    document = prepared.document
    return [
        {
            "source": source,
            "paragraph": paragraph,
            "text": said.text,
            "similarity": round(said.similarity, 4),
            "doubt": said.doubt,
            "lost": list(said.lost),
        }
        for source, paragraph, said in zip(
            document.sentences, document.paragraphs, done.sentences[code], strict=True
        )
    ]
