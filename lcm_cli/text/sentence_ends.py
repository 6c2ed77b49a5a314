"""Rules that decide whether a sentence ends at a place: abbreviations, ordinals, initials.

The tables cover English, German, French, Spanish and Dutch; a few rules serve all languages. Where
no rule applies, sentencex decides (see `segment`).
"""

import re
from dataclasses import dataclass

CLOSERS = r"[\"'”’»›)\]」』）】》]*"
PICTURES = "[\u2600-\u27bf\U0001f300-\U0001faff\ufe0f\u200d]"  # emoji, with what joins them


@dataclass(frozen=True)
class Rules:
    """The tables of a language: words without their full stop, in lower case.

    `never` end a sentence (titles, "e.g."); `number` only belong to a following number ("no. 5"),
    and before a capital they end the sentence; `always` end it before a capital ("etc."); `name`
    may be followed by a name ("Acme Inc. Boston"), and end it only before one of the `starters`,
    words that are capitalized nowhere but at the beginning of a sentence. `words` are also ordinary
    words. `letter` precedes a letter that is not an initial ("plan B").
    """

    never: frozenset[str]
    number: frozenset[str]
    always: frozenset[str]
    name: frozenset[str]
    starters: frozenset[str]
    words: frozenset[str] = frozenset()
    letter: frozenset[str] = frozenset()


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


RULES = {
    "en": Rules(
        never=_set(
            "mr mrs ms dr prof rev gen lt col capt sgt maj cmdr adm hon pres gov sen rep messrs mt "
            "e.g i.e viz cf vs approx ca esp incl excl dept a.k.a n.b max"
        ),
        number=_set(
            "no nos pp par para vol vols fig figs eq eqs art arts ch chap sec sect bk ed ex pt pl "
            "tab tel ext op ver jan feb mar apr jun jul aug sep sept oct nov dec"
        ),
        always=_set(
            "etc ft lb lbs oz hr hrs min mins secs yr yrs kg km cm mm sq ph.d m.a b.a m.sc"
        ),
        name=_set("st ave blvd rd jr sr inc ltd co corp bros univ al"),
        starters=_set(
            "he she it they we i you the a an this that these those there his her its their our my "
            "your but and or so then when where what who why how if in on at as for from to with "
            "after before although however meanwhile while because since until once nobody "
            "everybody everyone someone some many most all both each every no not yes one now "
            "today yesterday tomorrow here finally later soon also still even just only perhaps "
            "maybe did do does is are was were have has had can could will would let see please "
            "it's he's she's i'm we're they're that's there's don't didn't"
        ),
        words=_set("no fig art ed ex pt tab op sec mar"),
        letter=_set(
            "a an plan vitamin option part section class grade type group team point letter"
        ),
    ),
    "de": Rules(
        never=_set(
            "dr prof hr hrn fr frl dipl dipl.-ing ing mag st sog bzw evtl ggf vgl z.b d.h u.u i.d.r "
            "z.t z.zt m.e s.o s.u v.a m.w a.d i.a i.v ü.d inkl exkl zzgl einschl insb insbes bes ca "
            "max mind rd geb verh ev kath lat griech engl frz dt allg mio mrd tsd bspw"
        ),
        number=_set(
            "nr nrn abb abs art bd bde kap tab anm ziff aufl jg str tel fax hausnr anh bl sp rn "
            "jan feb mär mrz apr jun jul aug sep sept okt nov dez"
        ),
        always=_set("usw etc u.s.w v.chr n.chr ff kg km"),
        name=_set("co inc ltd corp u.a o.ä u.ä u.dgl d.m d.j jun sen std min sek jh abds"),
        starters=_set(
            "er sie es wir ihr ich du der die das den dem des ein eine einen einem einer eines "
            "dies dieser diese dieses diesem diesen jener jene jeder jede jedes dann da danach "
            "damals heute morgen gestern jetzt nun hier dort und aber oder doch denn so wenn als "
            "weil obwohl nachdem bevor während wie was wer wo warum wann welche welcher niemand "
            "jemand alle viele einige manche man mein meine dein deine sein seine seinen seinem "
            "ihre ihren unser unsere kein keine nicht nichts nein ja auch noch nur schon sehr in im "
            "am an auf aus bei beim mit nach von vom vor zu zum zur um für über unter seit bis "
            "durch gegen ohne trotz vielleicht leider später bald dabei dafür damit daher darum "
            "deshalb trotzdem jedoch außerdem schließlich zuerst mehr war ist sind hat"
        ),
        words=_set("art abs"),
        letter=_set("ein eine einen plan vitamin teil klasse typ gruppe punkt buchstabe"),
    ),
    "fr": Rules(
        never=_set(
            "M mm mme mmes mlle mlles mgr me dr drs pr prof st ste cf ex p.ex c.-à-d c.à.d càd env "
            "bd boul av apr gén lt sgt vs resp n.b"
        ),
        number=_set(
            "no nos n° art arts pp vol vols fig chap ch tél tel al lig ms "
            "janv fév févr avr juil sept oct nov déc"
        ),
        always=_set("etc j.-c min sec kg km"),
        name=_set("cie inc ltd co éd col"),
        starters=_set(
            "il elle ils elles on nous vous je j tu le la les l un une des du d ce cet cette ces c "
            "ça cela mon ma mes ton ta tes son sa ses notre nos votre vos leur leurs mais et ou donc "
            "or ni car puis ensuite alors après avant pendant quand lorsque comme si où que qu qui "
            "quoi pourquoi comment personne rien tout tous toutes chaque aucun aucune plus pas ne n "
            "y en à au aux dans par pour sur sous avec sans chez depuis vers lui eux moi toi "
            "aujourd hier demain ici là voilà enfin bientôt peut cependant pourtant oui non est"
        ),
        words=_set("art"),
        letter=_set("un une plan vitamine option partie classe type groupe point lettre"),
    ),
    "es": Rules(
        never=_set(
            "sr sra srta sres sras dr dra dres dña dn prof profa lic ing arq gral cnel fr sto sta "
            "mons rvdo excmo ilmo av avda ej p.ej vs cf"
        ),
        number=_set(
            "no nos núm num nro art arts pág págs pag vol vols fig figs cap caps ed tel tfno aprox "
            "párr sec lib apdo dpto depto máx mín "
            "ene feb mar abr may jun jul ago sep sept oct nov dic"
        ),
        always=_set("etc a.c d.c min seg kg km hab"),
        name=_set("ud uds vd vds cía cia co inc ltda ee.uu jj.oo ff.aa"),
        starters=_set(
            "él ella ellos ellas yo tú usted ustedes nosotros el la los las lo un una unos unas este "
            "esta estos estas ese esa esos esas eso esto aquel aquella mi mis tu tus su sus nuestro "
            "nuestra pero y o si no sí que qué quien quién cuando donde como cómo por para en al a "
            "con sin sobre desde hasta entre hacia luego después entonces ayer hoy mañana ahora aquí "
            "allí ya también tampoco nadie nada todo todos toda todas cada algunos muchos más me te "
            "se le les nos es era está fue hay había hubo son aunque porque mientras además "
            "finalmente"
        ),
        words=_set("no mar"),
        letter=_set("un una plan vitamina opción parte clase tipo grupo punto letra"),
    ),
    "nl": Rules(
        never=_set(
            "dhr mevr mw mej dr drs ir ing mr prof ds jhr st bijv bvb evt ca o.a d.w.z m.a.w i.p.v "
            "t.o.v t.o i.v.m m.b.t n.a.v t.g.v z.g zgn resp vgl incl excl max ong m.i a.s"
        ),
        number=_set(
            "nr nrs art blz pag vol fig hfst afb tab bijl par tel "
            "jan feb mrt apr jun jul aug sep sept okt nov dec"
        ),
        always=_set("enz etc v.chr n.chr min sec kg km"),
        name=_set("co inc ltd e.d e.a jl jr sr"),
        starters=_set(
            "hij zij ze het de een wij we ik jij je jullie u dit dat deze die mijn zijn haar ons "
            "onze hun er maar en of want dus toen dan nu daar daarna hier later gisteren vandaag "
            "morgen als wanneer waar wat wie waarom hoe niemand iedereen iemand alle veel geen niet "
            "nee ja ook nog in op aan bij met na naar uit voor om over onder sinds tot door omdat "
            "terwijl hoewel misschien eerst straks eindelijk"
        ),
        words=_set("art"),
        letter=_set("een plan vitamine optie deel klas type groep punt letter"),
    ),
}

NEVER = frozenset[str]().union(*(rules.never for rules in RULES.values()))

_OPENERS = "\"'“”„‚‘’«»‹›([{¿¡-–—"
_ELISION = re.compile(r"(?:[cdjlmnst]|qu|jusqu|lorsqu|puisqu)['’]", re.IGNORECASE)
_ELLIPSIS = re.compile(rf"(?:…|\.\.){CLOSERS}$")
_PICTURE = re.compile(rf"{PICTURES}$")
_NO_END = re.compile("[♥❣❤\U0001f493-\U0001f49f\U0001f5a4\U0001f90d\U0001f90e\U0001f9e1\ufe0f]+$")
_CLOSED = re.compile(r"[.!?…][\"'”’»“]$")
_CLITIC = re.compile(r"['’](?:[tskmnr]|ns)\s")  # Dutch, with a capital after it
_SITE = re.compile(r"[\w-]{2,}\.[a-zA-Z]{2,}(?:/\S*)?$|@")
_ACRONYM = re.compile(r"(?:[^\W\d_]\.-?)+[^\W\d_]")
_ROMAN = re.compile(r"[IVXL]{2,}|[VX]")
_DIGITS = re.compile(r"\d{1,3}")
_FIRST = re.compile(r"[^\W_]+")
_LAST = re.compile(r"([^\W_]+)\.$")
_BEFORE_ORDINAL = _set(
    "der die das den dem des am im vom zum zur beim ins ein eine einen einem einer eines und oder "
    "bis jeder jede jedes jeden jedem sein seine seinen seinem seiner ihr ihre ihren ihrem ihrer "
    "mein meine meinen meinem meiner unser unsere unseren dieser diese dieses diesen diesem in"
)
_MONTHS = _set(
    "januar jänner februar märz april mai juni juli august september oktober november dezember"
)


def decide(before: str, after: str, code: str) -> bool | None:
    """Return whether a sentence ends between `before` and `after`, None if no rule applies.

    `before` is the sentence so far or its tail, with the white space that follows; `code` is the
    language's ISO 639 code.
    """
    tail = before.rstrip()
    if tail == before:
        return _glued(tail, after)
    start = after.lstrip(_OPENERS)[:1]
    if code == "nl" and _CLITIC.match(after) and tail[-1] in ".!?…'’\"”":
        return True
    if not start:
        return None
    rules = RULES.get(code)
    if tail[-1] == "." and not tail.endswith("..") and rules:
        return _after_full_stop(tail, after, start, code, rules)
    return _after_other(tail, after, start, code, rules)


def _glued(tail: str, after: str) -> bool | None:
    """Decide where no space follows: "ran home.The cat" is a slip, "System.Text" a name."""
    if not tail.endswith(".") or not after[:1].isalpha() or after[0] > "\u024f":
        return None
    word = _LAST.search(tail)
    if not word or not word[1].isalpha():
        return None
    return word[1].islower() and len(word[1]) > 1 and after[0].isupper()


def _after_other(tail: str, after: str, start: str, code: str, rules: Rules | None) -> bool | None:
    """Decide after an ellipsis, a picture, or a mark followed by a quotation mark."""
    if _ELLIPSIS.search(tail):
        if start.islower():
            return False
        sure = rules and start.isupper() and (code != "de" or _starts(after, rules))
        return True if sure else None
    if _PICTURE.search(tail):
        return False if start.islower() else True if _pictured_end(tail, start) else None
    if tail.startswith("(") and tail.endswith((".)", "!)", "?)")) and start.isupper():
        return True
    if code == "nl" and tail.endswith((".'", "!'", "?'", ".’", "!’", "?’")) and start.isupper():
        return True
    return False if _CLOSED.search(tail) and after[0].islower() else None


def _pictured_end(tail: str, start: str) -> bool:
    """Return whether a capital after a picture begins a sentence: not in "I ♥ Paris"."""
    return start.isupper() and not _NO_END.search(tail) and len(tail.split(maxsplit=2)) > 2


def _after_full_stop(tail: str, after: str, start: str, code: str, rules: Rules) -> bool | None:
    """Decide after a full stop by the word before it."""
    *_, earlier, last = ["", "", *tail[-80:].split()[-2:]]
    word = _word(last)
    if not word:
        return None
    keys = [word if len(word) == 1 else word.casefold()]
    if earlier.endswith("."):
        keys.insert(0, _word(earlier).casefold() + "." + word.casefold())
    for key in keys:
        if key in rules.never:
            return False
        if key in rules.number:
            return _after_number_word(key, after, start, rules)
        if key in rules.always:
            return start.isupper() or (None if start.isdecimal() else False)
        if key in rules.name:
            return _after_name(after, start, rules)
    return _after_unlisted(word, earlier, after, start, code, rules)


def _word(token: str) -> str:
    """Return a token without opening marks, elided article and full stop."""
    return _ELISION.sub("", token.lstrip(_OPENERS), count=1).removesuffix(".")


def _after_number_word(key: str, after: str, start: str, rules: Rules) -> bool | None:
    numeral = _FIRST.match(after)
    if start.isdecimal() or (numeral and _ROMAN.fullmatch(numeral.group())):
        return False
    if start.islower():
        return None if key in rules.words else False
    return start.isupper() or None


def _after_name(after: str, start: str, rules: Rules) -> bool | None:
    if start.isdecimal():
        return None
    return start.isupper() and _starts(after, rules)


def _after_unlisted(
    word: str, earlier: str, after: str, start: str, code: str, rules: Rules
) -> bool | None:
    """Decide after letters, acronyms, numbers, addresses and common words."""
    if len(word) == 1 and word.isalpha():
        return _after_letter(word, earlier, after, start, code, rules)
    if _ACRONYM.fullmatch(word):
        return False if start.isdecimal() else _after_name(after, start, rules)
    if _ROMAN.fullmatch(word):
        return start.isupper() and (code != "de" or _starts(after, rules))
    if _DIGITS.fullmatch(word) and code == "de":
        return _after_ordinal(earlier, after, start, rules)
    if _SITE.search(word):
        return start.isupper() or None
    if start.isdecimal() and word.isalpha() and len(word) > 3:
        return not (code == "de" and word.endswith("str"))
    return False if after[0] == "-" else None


def _after_letter(
    word: str, earlier: str, after: str, start: str, code: str, rules: Rules
) -> bool | None:
    """Decide after a single letter: an initial, the pronoun I, or a letter as in "plan B"."""
    if start.isupper() and word.isupper() and _word(earlier).casefold() in rules.letter:
        return True
    if code == "en" and word == "I" and earlier.islower():
        return True
    if start.isupper() and _starts(after, rules):
        return True
    return None if start.isupper() and word.islower() else False


def _after_ordinal(earlier: str, after: str, start: str, rules: Rules) -> bool | None:
    """Decide after a number in German, where "2." may be an ordinal and nouns have capitals."""
    ordinal = not earlier or earlier.casefold() in _BEFORE_ORDINAL or earlier[-1] == "."
    if start.isdecimal():
        return False if ordinal else None
    if not start.isupper():
        return False
    if _first(after) in _MONTHS:
        return False
    return _starts(after, rules) or not ordinal


def _starts(after: str, rules: Rules) -> bool:
    """Return whether the next word is one that has a capital only at the start of a sentence."""
    return _first(after) in rules.starters


def _first(after: str) -> str:
    found = _FIRST.search(after)
    return found.group().casefold() if found else ""
