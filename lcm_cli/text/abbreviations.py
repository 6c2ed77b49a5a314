"""Abbreviations in English, German, French, Spanish and Dutch, for segmentation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The tables of a language: words without their full stop.

    Words with a capital must have it in the text ("Rep.", but "one more rep."); the case of others
    does not matter.

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


def word_set(words: str) -> frozenset[str]:
    """Return the words of a line as a set."""
    return frozenset(words.split())


RULES = {
    "en": Rules(
        never=word_set(
            "mr mrs ms dr prof Rev Gen lt Col Capt sgt maj cmdr Adm Hon Pres Gov Sen Rep messrs "
            "Mt e.g i.e viz cf vs approx ca esp incl excl dept a.k.a n.b "
            "p.s p.p.s"
        ),
        number=word_set(
            "no nos pp par para vol vols fig figs eq eqs art arts ch chap sec sect bk ed ex pt pl "
            "tab tel ext op ver max temp avg jan feb mar apr jun jul aug sep sept oct nov dec"
        ),
        always=word_set(
            "etc ft lb lbs oz hr hrs min mins secs yr yrs kg km cm mm sq ph.d m.a b.a m.sc"
        ),
        name=word_set("st ave blvd rd jr sr inc ltd co corp bros univ al"),
        starters=word_set(
            "he she it they we i you the a an this that these those there his her its their our "
            "my your but and or so then when where what who why how if in on at as for from to "
            "with after before although however meanwhile while because since until once nobody "
            "everybody everyone someone some many most all both each every no not yes one now "
            "today yesterday tomorrow here finally later soon also still even just only perhaps "
            "maybe did do does is are was were have has had can could will would let see please "
            "don didn isn wasn"
        ),
        words=word_set("no fig art ed ex pt tab op sec mar"),
        letter=word_set(
            "a an plan vitamin option part section class grade type group team point letter"
        ),
    ),
    "de": Rules(
        never=word_set(
            "dr prof hr hrn fr frl dipl dipl.-ing ing Mag st sog bzw evtl ggf vgl z.b d.h u.u "
            "i.d.r z.t z.zt m.e s.o s.u v.a m.w a.d i.a i.v ü.d inkl exkl zzgl einschl insb "
            "insbes bes ca mind rd geb verh ev kath lat griech engl frz dt allg mio mrd tsd "
            "bspw fa p.s n.b"
        ),
        number=word_set(
            "nr nrn abb abs art bd bde kap tab anm ziff aufl jg str tel fax hausnr anh bl sp rn "
            "jan feb mär mrz apr jun jul aug sep sept okt nov dez"
        ),
        always=word_set("usw etc u.s.w v.chr n.chr kg km"),
        name=word_set(
            "co inc ltd corp max ff u.a o.ä u.ä u.dgl d.m d.j jun sen std min sek jh abds"
        ),
        starters=word_set(
            "er sie es wir ihr ich du der die das den dem des ein eine einen einem einer eines "
            "dies dieser diese dieses diesem diesen jener jene jeder jede jedes dann da danach "
            "damals heute morgen gestern jetzt nun hier dort und aber oder doch denn so wenn als "
            "weil obwohl nachdem bevor während wie was wer wo warum wann welche welcher niemand "
            "jemand alle viele einige manche man mein meine dein deine sein seine seinen seinem "
            "ihre ihren unser unsere kein keine nicht nichts nein ja auch noch nur schon sehr in "
            "im am an auf aus bei beim mit nach von vom vor zu zum zur um für über unter seit bis "
            "durch gegen ohne trotz vielleicht leider später bald dabei dafür damit daher darum "
            "deshalb trotzdem jedoch außerdem schließlich zuerst mehr war ist sind hat"
        ),
        words=word_set("art abs"),
        letter=word_set("ein eine einen plan vitamin teil klasse typ gruppe punkt buchstabe"),
    ),
    "fr": Rules(
        never=word_set(
            "M mm mme mmes mlle mlles mgr Me dr drs pr prof st ste cf ex p.ex c.-à-d c.à.d càd "
            "env bd boul av apr gén lt sgt vs resp n.b p.s p.-s"
        ),
        number=word_set(
            "no nos n° art arts pp vol vols fig chap ch tél tel al lig ms janv fév févr avr juil "
            "sept oct nov déc"
        ),
        always=word_set("etc j.-c min sec kg km"),
        name=word_set("cie inc ltd co éd col"),
        starters=word_set(
            "il elle ils elles on nous vous je j tu le la les l un une des du d ce cet cette ces "
            "c ça cela mon ma mes ton ta tes son sa ses notre nos votre vos leur leurs mais et ou "
            "donc or ni car puis ensuite alors après avant pendant quand lorsque comme si où que "
            "qu qui quoi pourquoi comment personne rien tout tous toutes chaque aucun aucune plus "
            "pas ne n y en à au aux dans par pour sur sous avec sans chez depuis vers lui eux moi "
            "toi aujourd hier demain ici là voilà enfin bientôt peut cependant pourtant oui non "
            "est"
        ),
        words=word_set("art"),
        letter=word_set("un une plan vitamine option partie classe type groupe point lettre"),
    ),
    "es": Rules(
        never=word_set(
            "sr sra srta sres sras dr dra dres dña dn prof profa lic ing arq gral cnel fr sto sta "
            "mons rvdo excmo ilmo av avda ej p.ej vs cf p.d n.b"
        ),
        number=word_set(
            "no nos núm num nro art arts pág págs pag vol vols fig figs cap caps ed tel tfno "
            "aprox párr sec lib apdo dpto depto máx mín ene feb mar abr may jun jul ago sep sept "
            "oct nov dic"
        ),
        always=word_set("etc a.c d.c min seg kg km hab"),
        name=word_set("ud uds vd vds cía cia co inc ltda ee.uu jj.oo ff.aa"),
        starters=word_set(
            "él ella ellos ellas yo tú usted ustedes nosotros el la los las lo un una unos unas "
            "este esta estos estas ese esa esos esas eso esto aquel aquella mi mis tu tus su sus "
            "nuestro nuestra pero y o si no sí que qué quien quién cuando donde como cómo por "
            "para en al a con sin sobre desde hasta entre hacia luego después entonces ayer hoy "
            "mañana ahora aquí allí ya también tampoco nadie nada todo todos toda todas cada "
            "algunos muchos más me te se le les nos es era está fue hay había hubo son aunque "
            "porque mientras además finalmente"
        ),
        words=word_set("no mar"),
        letter=word_set("un una plan vitamina opción parte clase tipo grupo punto letra"),
    ),
    "nl": Rules(
        never=word_set(
            "dhr mevr mw mej dr drs ir ing mr prof ds jhr st bijv bvb evt ca o.a d.w.z m.a.w "
            "i.p.v t.o.v t.o i.v.m m.b.t n.a.v t.g.v z.g zgn resp vgl incl excl ong m.i a.s p.s n.b"
        ),
        number=word_set(
            "nr nrs max art blz pag vol fig hfst afb tab bijl par tel jan feb mrt apr jun jul aug "
            "sep sept okt nov dec"
        ),
        always=word_set("enz etc v.chr n.chr min sec kg km"),
        name=word_set("co inc ltd e.d e.a jl jr sr"),
        starters=word_set(
            "hij zij ze het de een wij we ik jij je jullie u dit dat deze die mijn zijn haar ons "
            "onze hun er maar en of want dus toen dan nu daar daarna hier later gisteren vandaag "
            "morgen als wanneer waar wat wie waarom hoe niemand iedereen iemand alle veel geen "
            "niet nee ja ook nog in op aan bij met na naar uit voor om over onder sinds tot door "
            "omdat terwijl hoewel misschien eerst straks eindelijk"
        ),
        words=word_set("art"),
        letter=word_set("een plan vitamine optie deel klas type groep punt letter"),
    ),
}


def _listed(rules: Rules) -> frozenset[str]:
    """Return the last word of each abbreviation in the tables."""
    tables = (rules.never, rules.number, rules.always, rules.name)
    return frozenset(word.rsplit(".", 1)[-1].casefold() for table in tables for word in table)


# The last word of each abbreviation, and all words that never end a sentence.
LISTED = {code: _listed(rules) for code, rules in RULES.items()}
NEVER = frozenset(word.casefold() for rules in RULES.values() for word in rules.never)
