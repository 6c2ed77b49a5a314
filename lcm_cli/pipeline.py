"""From documents to concepts and back: language, sentences, encoding and decoding.

Documents are encoded and decoded many at a time, so that short ones share batches. Nothing here
imports torch: the caller passes a loaded `Space`.

Shapes: S sentences, D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from lcm_cli.documents import Document, SpaceInfo
from lcm_cli.documents.document import check_plans
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.progress import Progress
from lcm_cli.text.languages import find_language, gap

if TYPE_CHECKING:
    from lcm_cli.documents.formats.skeleton import Skeleton
    from lcm_cli.space import DecodeOptions, Encoded, Space, Text, Truncation
    from lcm_cli.speech import Speech
    from lcm_cli.text.segment import Segment, Split

SPOKEN = "eng_Latn"  # the language of recordings, unless it is named
_UTTERANCE = 4  # seconds of an utterance, for estimates
_TOKENS = 12  # of text in a second of speech, at most


@dataclass(frozen=True)
class Prepared:
    """A document with its language and sentences; `embed` adds the concepts.

    `split` holds the indices of sentences that are pieces of an overlong one. Indices in
    `truncated` count on from the document's sentences into its target's and its plans'.
    `passages` holds, for each sentence, the index of its passage in `skeleton()`; it is empty if
    the document was given as sentences.
    """

    document: Document
    split: list[int] = field(default_factory=list)
    truncated: "list[Truncation]" = field(default_factory=list)
    passages: list[int] = field(default_factory=list)
    speech: str = ""  # the encoder of a recording: a card's name, a folder or ORG/REPO
    text: str = ""  # of a plain text
    one_per_line: bool = False

    @property
    def size(self) -> int:
        """Number of sentences, or of concepts where these were given; includes target and plans.

        That of a recording is an estimate.
        """
        if self.document.recording is not None:
            return 1 + int(self.document.recording.seconds / _UTTERANCE)
        return sum(
            len(part.sentences if part.concepts is None else part.concepts)
            for part in _parts(self.document)
        )

    @property
    def concepts(self) -> np.ndarray:
        """The concepts (S, D) float32."""
        assert self.document.concepts is not None
        return np.asarray(self.document.concepts, dtype=np.float32)

    def place(self, sentence: int) -> str:
        """Return where a reader finds a sentence: a page, a time or a heading, "" if unknown."""
        if self.document.times:
            return "–".join(map(_minutes, self.document.times[sentence]))
        if not self.document.passages:
            return ""
        return self.document.passages[self.passages[sentence]].place

    def skeleton(self) -> "Skeleton | None":
        """Return the skeleton into which translations fit, None if it is not known."""
        if self.document.skeleton is not None or not self.text:
            return self.document.skeleton
        from lcm_cli.documents.formats import plain
        from lcm_cli.documents.formats.written import AsWritten, TextForm

        found = plain.read_lines(self.text) if self.one_per_line else plain.read(self.text)
        return AsWritten(found, self.document.form or TextForm())

    def render(self, skeleton: "Skeleton", sentences: Sequence[str], lang: str) -> bytes:
        """Return the document with other sentences, which are in the language with code `lang`."""
        pairs: list[list[tuple[str, str]]] = [[] for _ in skeleton.passages]
        own = self.document.sentences
        for passage, old, new in zip(self.passages, own, sentences, strict=True):
            pairs[passage].append((old, new))
        # A passage without sentences consists of marks such as "* * *": it stays.
        kept = [
            found or [(passage.text, passage.text)]
            for passage, found in zip(skeleton.passages, pairs, strict=True)
        ]
        return skeleton.render(kept, lang)


@dataclass(frozen=True)
class Decoded:
    """A document and its decoded sentences: language code -> sentence -> n best texts."""

    document: Document
    texts: "dict[str, list[list[Text]]]"

    def text(self, lang: str, one_per_line: bool = False) -> str:
        """Return the best text in one language, with the paragraphs of the document."""
        best = [texts[0].text for texts in self.texts[lang]]
        return prose(best, lang, self.document.paragraphs, one_per_line)


def space_info(space: "Space") -> SpaceInfo:
    """Return the description of `space` that concept files carry."""
    return SpaceInfo(space.name, space.fingerprint, space.dim)


def text_needs_space(document: Document) -> UsageError:
    """Return the error for text that no known space can encode."""
    return UsageError(
        f"{document.label} is text, and the space of this model is not known",
        "give concepts (from lcm embed), or name the space: --space SPACE",
    )


def without_target(document: Document, *, keep_plans: bool) -> Document:
    """Return a document to continue: no target, and plans only for a model that reads them."""
    return replace(document, target=None, plans=document.plans if keep_plans else None)


def find_languages(wanted: Sequence[str], within: Sequence[str], where: str) -> list[str]:
    """Return the codes of the languages in `wanted`, without duplicates.

    `within` holds the codes of the space called `where`; the name `all` stands for all of them.
    Raises NotFoundError for an unknown language.
    """
    if any(name.casefold() == "all" for name in wanted):
        return list(within)
    return list(dict.fromkeys(find_language(name, within, where).code for name in wanted))


def prepare_documents(
    document: Document,
    languages: Sequence[str],
    where: str,
    source: str = "auto",
    one_per_line: bool = False,
    split: "Split" = "auto",
    speech: str | None = None,
) -> Prepared:
    """Determine a document's language and sentences, unless it has them.

    `languages` are the codes of the space called `where`. `source` is the code for a document that
    does not say its language, or `auto` to detect it. `split` is how sentences are found, `speech`
    the speech encoder of recordings, by default one of the space for their language. Raises an
    LcmError that names the document, for a language that the space lacks or that cannot be
    detected.
    """
    if document.recording is not None:
        return _prepared_recording(document, where, source, speech)
    try:
        lang = _language(document, languages, where, source)
        if document.target is not None:
            target = replace(document.target, lang=lang)
            target = prepare_documents(
                target, languages, where, source, one_per_line, split
            ).document
            document = replace(document, target=target)
        if document.plans is not None:
            plans = replace(document.plans, lang=lang, concepts=None)
            document = replace(document, plans=plans)
        pieces: list[tuple[Segment, int]] = []  # with the index of the passage
        if not document.sentences:
            pieces = _pieces(document, lang, one_per_line, split)
    except LcmError as error:
        raise type(error)(f"{document.label}: {error.message}", error.hint) from error
    found = replace(document, lang=lang, concepts=None)
    if not document.sentences:
        found.text, found.sentences = "", [piece.text for piece, _ in pieces]
        found.paragraphs = [piece.paragraph for piece, _ in pieces]
    check_plans(found)
    return Prepared(
        found,
        [i for i, (piece, _) in enumerate(pieces) if piece.split],
        passages=[passage for _, passage in pieces],
        text=document.text if _is_plain(document) else "",
        one_per_line=one_per_line,
    )


def _prepared_recording(
    document: Document, where: str, source: str, speech: str | None
) -> Prepared:
    """Determine the language of a recording and its speech encoder, which must be installed."""
    from lcm_cli.hub.cards import speech_encoder_for
    from lcm_cli.hub.locate import locate_speech
    from lcm_cli.speech.config import read_speech_config

    if speech is None:
        speech = speech_encoder_for(where, document.lang or SPOKEN if source == "auto" else source)
    spoken = read_speech_config(locate_speech(speech).config).languages
    lang = spoken[0] if source == "auto" else find_language(source, spoken, speech).code
    return Prepared(replace(document, lang=lang), speech=speech)


def _is_plain(document: Document) -> bool:
    """Return whether a document's text is divided into passages by its blocks."""
    return document.skeleton is None and not document.passages


def _pieces(
    document: Document, lang: str, one_per_line: bool, split: "Split"
) -> "list[tuple[Segment, int]]":
    """Return the sentences of a document's text, each with the index of its passage."""
    from lcm_cli.text.segment import segment

    if _is_plain(document):
        found = segment(document.text, lang, one_per_line=one_per_line, split=split)
        return [(each, n if one_per_line else each.block) for n, each in enumerate(found)]
    return [
        (replace(each, paragraph=passage.paragraph), number)
        for number, passage in enumerate(document.passages)
        for each in segment(passage.text, lang, one_per_line=one_per_line, split=split)
    ]


def embed(
    window: Sequence[Prepared], space: "Space", progress: Progress | None = None
) -> list[Prepared]:
    """Add concepts to the documents without any, encoding all their sentences together.

    `progress` receives the number of sentences encoded. Recordings are encoded one by one, as
    `hear` does.
    """
    window = [hear(each, space) for each in window]
    parts = [part for each in window if not _has_concepts(each) for part in _parts(each.document)]
    sentences = [sentence for part in parts for sentence in part.sentences]
    codes = [part.lang for part in parts for _ in part.sentences]
    encoded = space.encode(sentences, codes, progress)
    done, start = [], 0
    for each in window:
        if _has_concepts(each):
            done.append(each)
        else:
            done.append(_with_concepts(each, encoded, start))
            start += each.size
    return done


def hear(prepared: Prepared, space: "Space", progress: Progress | None = None) -> Prepared:
    """Add the concepts of a recording's utterances, their times, and their decoded text.

    `progress` receives the seconds of audio done. Other documents are returned unchanged. Raises
    IntegrityError for a damaged file, one without speech, and an encoder of another space.
    """
    document = prepared.document
    if document.recording is None:
        return prepared
    from lcm_cli.speech.listening import listen

    speech = _speech_encoder(prepared.speech, str(space.device), space.precision)
    speech.check_space(space.name, space.fingerprint)
    heard = listen(document.recording, speech, progress)
    limits = [token_limit(end - start) for start, end in heard.times]
    texts = space.decode(heard.concepts, [document.lang], limits=limits)[document.lang]
    sentences = [best[0].text for best in texts]
    return replace(
        prepared,
        document=replace(
            document,
            recording=None,
            concepts=heard.concepts,
            times=heard.times,
            sentences=sentences,
            paragraphs=[0] * len(sentences),
        ),
    )


def token_limit(seconds: float) -> int:
    """Return the most tokens of text that an utterance of this duration can have."""
    return 16 + int(_TOKENS * seconds)


@lru_cache(maxsize=2)
def _speech_encoder(source: str, device: str, precision: str) -> "Speech":
    from lcm_cli.speech import load_speech_encoder

    return load_speech_encoder(source, device=device, precision=precision)


def _has_concepts(prepared: Prepared) -> bool:
    return prepared.document.concepts is not None


def _with_concepts(prepared: Prepared, encoded: "Encoded", start: int) -> Prepared:
    """Return a document with its share of the encoded sentences, which begins at `start`."""
    parts, end = [], start
    for part in _parts(prepared.document):
        begin, end = end, end + len(part.sentences)
        parts.append(replace(part, concepts=encoded.concepts[begin:end]))
    document, rest = parts[0], iter(parts[1:])
    document.target = next(rest) if document.target else None
    document.plans = next(rest) if document.plans else None
    cut = [t for t in encoded.truncated if start <= t.index < end]
    cut = [replace(t, index=t.index - start) for t in cut]
    return replace(prepared, document=document, truncated=cut)


def _parts(document: Document) -> list[Document]:
    return [part for part in (document, document.target, document.plans) if part is not None]


def decode(
    documents: Sequence[Document],
    to: Sequence[str],
    space: "Space",
    options: "DecodeOptions | None" = None,
    progress: Progress | None = None,
) -> list[Decoded]:
    """Decode the concepts of documents together into each language of `to`.

    `progress` receives the number of sentences decoded, counted once for each language.
    """
    concepts = [np.asarray(d.concepts, dtype=np.float32) for d in documents]
    limits = [limit for document in documents for limit in _limits(document, space, options)]
    found = space.decode(np.concatenate(concepts), to, options, limits=limits, progress=progress)
    done, start = [], 0
    for document, rows in zip(documents, concepts, strict=True):
        end = start + len(rows)
        done.append(Decoded(document, {lang: texts[start:end] for lang, texts in found.items()}))
        start = end
    return done


def prose(
    sentences: Sequence[str], lang: str, paragraphs: Sequence[int] = (), one_per_line: bool = False
) -> str:
    """Return sentences as running text, or one per line; a blank line separates paragraphs.

    `paragraphs` holds the paragraph number of each sentence; without it there is one paragraph.
    """
    between = "\n" if one_per_line else gap(lang)
    numbered = zip(paragraphs or [0] * len(sentences), sentences, strict=True)
    parts = groupby(numbered, key=lambda pair: pair[0])
    return "\n\n".join(between.join(sentence for _, sentence in part) for _, part in parts)


def _language(document: Document, languages: Sequence[str], where: str, source: str) -> str:
    if document.lang:
        return find_language(document.lang, languages, where).code
    if source != "auto":
        return source
    from lcm_cli.text.detect import detect

    return detect(document.text or " ".join(document.sentences), languages, where)


def _minutes(seconds: float) -> str:
    """Return a time such as 0:03 or 1:02:03."""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _limits(document: Document, space: "Space", options: "DecodeOptions | None") -> list[int]:
    """Return the token limit of each sentence: from its source text, or else from `options`."""
    if document.sentences and document.lang:
        return space.limits(document.sentences, space.find_language(document.lang))
    assert document.concepts is not None
    most = 256 if options is None else options.max_tokens
    return [most] * len(document.concepts)
