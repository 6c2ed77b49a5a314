"""Modern spelling of the most common words that books from before 1900 spell differently.

Only whole words are replaced; words not in the lists are unchanged.
"""

import re

_DUTCH = """
alzoo alzo, asch as, beenen benen, behooren behoren, beteekenen betekenen, beteekent betekent,
bloote blote, boomen bomen, booze boze, bosch bos, bosschen bossen, deelen delen, den de,
doode dode, dooden doden, droomen dromen, eene een, eenen een, eenig enig, eenige enige,
eenigen enige, eenigszins enigszins, engelsche engelse, evenzoo evenzo, flesch fles,
flesschen flessen, fransche franse, frisch fris, frissche frisse, gansch gans, gansche ganse,
geene geen, geenen geen, geheele gehele, gelooven geloven, gewenscht gewenst, groote grote,
grooten grote, grooter groter, heele hele, heelen hele, heeren heren, hooge hoge, hoogen hoge,
hooger hoger, hoopen hopen, hooren horen, keeren keren, knoopen knopen, koopen kopen,
leeren leren, loopen lopen, meenen menen, mensch mens, menschelijk menselijk,
menschelijke menselijke, menschen mensen, musch mus, musschen mussen, noodig nodig,
noodige nodige, oogen ogen, ooren oren, pooten poten, roode rode, rooden rode,
rooken roken, schoone schone, schoonen schone, schooner schoner, steenen stenen,
stroomen stromen, teeken teken, teekenen tekenen, toonen tonen, trotsch trots, trotsche trotse,
tusschen tussen, valsch vals, valsche valse, versch vers, versche verse, visch vis,
visschen vissen, visscher visser, vleesch vlees, vreeselijk vreselijk, vreeselijke vreselijke,
vreezen vrezen, vroolijk vrolijk, vroolijke vrolijke, wasschen wassen, weenen wenen, wensch wens,
wenschen wensen, wenschte wenste, zoo zo, zoo'n zo'n, zoo’n zo’n, zooals zoals, zoodanig zodanig,
zoodat zodat, zoodra zodra, zoogenaamde zogenaamde, zoolang zolang, zooveel zoveel, zoover zover
"""

_GERMAN = """
ächt echt, allmählig allmählich, beschloß beschloss, bewußt bewusst, biß biss, bißchen bisschen,
blaß blass, capitel kapitel, daß dass, entschluß entschluss, faß fass, faßte fasste, fieng fing,
floß floss, fluß fluss, genoß genoss, gefaßt gefasst, gethan getan, gewiß gewiss, gewußt gewusst,
gieb gib, giebt gibt, gieng ging, goß goss, haß hass, häßlich hässlich, häßliche hässliche,
häßlichen hässlichen, heirathen heiraten, hieng hing, hülfe hilfe, iß iss, ißt isst, kuß kuss,
küßte küsste, küßten küssten, laß lass, läßt lässt, muß muss, mußt musst, mußte musste,
mußten mussten, müßte müsste, müßten müssten, muth mut, muthig mutig, naß nass, noth not,
nöthig nötig, nuß nuss, paßt passt, paßte passte, rath rat, riß riss, roß ross, roth rot,
rothe rote, rothen roten, schloß schloss, schluß schluss, schoß schoss, sey sei, seyn sein,
thal tal, that tat, thaten taten, thäte täte, theil teil, theile teile, thier tier, thiere tiere,
thieren tieren, thor tor, thräne träne, thränen tränen, thue tue, thun tun, thür tür, thüre türe,
thüren türen, thut tut, todt tot, todte tote, todten toten, vergißt vergisst, werth wert,
wol wohl, wußte wusste, wußten wussten
"""


def _table(pairs: str) -> dict[str, str]:
    return dict(pair.split() for pair in pairs.replace("\n", " ").split(","))


_MODERN = {"nld_Latn": _table(_DUTCH), "deu_Latn": _table(_GERMAN)}
_WORD = re.compile(r"Den Haag|\w+(?:['’]n\b)?")


def modern(text: str, code: str) -> str:
    """Return the text with the listed words of its language in modern spelling."""
    table = _MODERN.get(code, {})

    def word(found: re.Match[str]) -> str:
        old = found.group()
        new = table.get(old.lower(), old.lower())
        if new == old.lower():
            return old
        return new.capitalize() if old[0].isupper() else new

    return _WORD.sub(word, text) if table else text
