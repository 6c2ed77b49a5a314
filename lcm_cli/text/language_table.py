"""The 202 languages of SONAR: code, English name, own name, two-letter code and aliases.

Codes and their order are those of the tokenizer card of sonar-space 0.5.0. The order determines the
language ids: never sort the table. Names and two-letter codes follow Unicode CLDR; own names missing
from CLDR, and all aliases, were added by hand. An alias that occurs in several rows is ambiguous.

The two-letter code is that of the language or, for the usual member of a macrolanguage, that of the
macrolanguage (`ar` for Standard Arabic). Aliases are the three-letter codes of such macrolanguages,
the bibliographic codes of ISO 639-2/B (`fre`), retired codes (`iw`), the current FLORES+ codes of
the same texts, and other names in use.
"""
# ruff: noqa: E501

# code | name | own name | two-letter code | aliases; separated; by semicolons
TABLE = """\
ace_Arab | Acehnese (Arabic) | بهسا اچيه |  | Acehnese; Achinese
ace_Latn | Acehnese (Latin) | Bahsa Acèh |  | Acehnese; Achinese
acm_Arab | Mesopotamian Arabic | عراقي |  | Iraqi Arabic
acq_Arab | Ta'izzi-Adeni Arabic | عدني |  | Yemeni Arabic; Adeni Arabic
aeb_Arab | Tunisian Arabic | تونسي |  | Derja
afr_Latn | Afrikaans | Afrikaans | af |
ajp_Arab | South Levantine Arabic | شامي جنوبي |  | Levantine Arabic; Palestinian Arabic; Jordanian Arabic; apc_Arab_sout3123
aka_Latn | Akan | Akan | ak | twi_Latn_asan1239; Asante Twi
amh_Ethi | Amharic | አማርኛ | am |
apc_Arab | North Levantine Arabic | شامي شمالي |  | Levantine Arabic; Syrian Arabic; Lebanese Arabic
arb_Arab | Standard Arabic | العربية | ar | ara; Arabic; Modern Standard Arabic; عربي
ars_Arab | Najdi Arabic | نجدي |  | Saudi Arabic
ary_Arab | Moroccan Arabic | الدارجة |  | Darija
arz_Arab | Egyptian Arabic | مصرى |  |
asm_Beng | Assamese | অসমীয়া | as |
ast_Latn | Asturian | asturianu |  | Asturleonese
awa_Deva | Awadhi | अवधी |  |
ayr_Latn | Central Aymara | Aymar aru | ay | aym; Aymara
azb_Arab | South Azerbaijani | تۆرکجه |  | Southern Azerbaijani
azj_Latn | North Azerbaijani | azərbaycanca | az | aze; Azerbaijani; Azeri; azərbaycan
bak_Cyrl | Bashkir | башҡортса | ba |
bam_Latn | Bambara | bamanankan | bm |
ban_Latn | Balinese | Basa Bali |  |
bel_Cyrl | Belarusian | беларуская | be | Belorussian
bem_Latn | Bemba | Ichibemba |  |
ben_Beng | Bengali | বাংলা | bn | Bangla
bho_Deva | Bhojpuri | भोजपुरी |  |
bjn_Arab | Banjar (Arabic) | بهاس بنجر |  | Banjar; Banjarese
bjn_Latn | Banjar (Latin) | Bahasa Banjar |  | Banjar; Banjarese
bod_Tibt | Tibetan | བོད་སྐད་ | bo | tib; Standard Tibetan
bos_Latn | Bosnian | bosanski | bs | Serbo-Croatian; sh; hbs
bug_Latn | Buginese | Basa Ugi |  | Bugis
bul_Cyrl | Bulgarian | български | bg |
cat_Latn | Catalan | català | ca | Valencian; valencià
ceb_Latn | Cebuano | Sinugbuanong Binisaya |  | Bisaya
ces_Latn | Czech | čeština | cs | cze; český
cjk_Latn | Chokwe | Chokwe |  |
ckb_Arab | Central Kurdish | کوردیی ناوەندی |  | Sorani; Kurdish; ku_Arab; kur_Arab
crh_Latn | Crimean Tatar | qırımtatarca |  | Crimean Turkish
cym_Latn | Welsh | Cymraeg | cy | wel
dan_Latn | Danish | dansk | da |
deu_Latn | German | Deutsch | de | ger
dik_Latn | Southwestern Dinka | Thuɔŋjäŋ |  | din; Dinka
dyu_Latn | Dyula | Julakan |  | Jula; Dioula
dzo_Tibt | Dzongkha | རྫོང་ཁ | dz | Bhutanese
ell_Grek | Greek | Ελληνικά | el | gre; Modern Greek; Greek, Modern (1453-)
eng_Latn | English | English | en |
epo_Latn | Esperanto | Esperanto | eo |
est_Latn | Estonian | eesti | et | ekk; ekk_Latn; Standard Estonian; eesti keel
eus_Latn | Basque | euskara | eu | baq
ewe_Latn | Ewe | Eʋegbe | ee |
fao_Latn | Faroese | føroyskt | fo |
pes_Arab | Iranian Persian | فارسی | fa | fas; per; Persian; Western Persian; Farsi
fij_Latn | Fijian | Na Vosa Vakaviti | fj |
fin_Latn | Finnish | suomi | fi |
fon_Latn | Fon | Fɔngbè |  |
fra_Latn | French | français | fr | fre
fur_Latn | Friulian | furlan |  |
fuv_Latn | Nigerian Fulfulde | Fulfulde | ff | ful; Fula; Fulah; Fulani
gla_Latn | Scottish Gaelic | Gàidhlig | gd | Scots Gaelic; Gaelic
gle_Latn | Irish | Gaeilge | ga | Irish Gaelic; Gaelic
glg_Latn | Galician | galego | gl |
grn_Latn | Guarani | Avañe'ẽ | gn | gug; gug_Latn; Paraguayan Guarani
guj_Gujr | Gujarati | ગુજરાતી | gu |
hat_Latn | Haitian Creole | kreyòl ayisyen | ht | Haitian; Creole
hau_Latn | Hausa | Hausa | ha |
heb_Hebr | Hebrew | עברית | he | iw
hin_Deva | Hindi | हिन्दी | hi | हिंदी
hne_Deva | Chhattisgarhi | छत्तीसगढ़ी |  |
hrv_Latn | Croatian | hrvatski | hr | Serbo-Croatian; sh; hbs
hun_Latn | Hungarian | magyar | hu |
hye_Armn | Armenian | հայերեն | hy | arm; Eastern Armenian
ibo_Latn | Igbo | Igbo | ig |
ilo_Latn | Ilocano | Ilokano |  | Iloko
ind_Latn | Indonesian | Bahasa Indonesia | id | in
isl_Latn | Icelandic | íslenska | is | ice
ita_Latn | Italian | italiano | it |
jav_Latn | Javanese | Basa Jawa | jv | jw
jpn_Jpan | Japanese | 日本語 | ja | jp
kab_Latn | Kabyle | Taqbaylit |  | Berber
kac_Latn | Kachin | Jinghpaw |  | Jingpho
kam_Latn | Kamba | Kikamba |  |
kan_Knda | Kannada | ಕನ್ನಡ | kn |
kas_Arab | Kashmiri (Arabic) | کٲشُر | ks | Kashmiri
kas_Deva | Kashmiri (Devanagari) | कॉशुर | ks | Kashmiri
kat_Geor | Georgian | ქართული | ka | geo
knc_Arab | Central Kanuri (Arabic) | كَنُرِيْ | kr | kau; Kanuri; Central Kanuri
knc_Latn | Central Kanuri (Latin) | Kanuri | kr | kau; Kanuri; Central Kanuri
kaz_Cyrl | Kazakh | қазақ тілі | kk | қазақша
kbp_Latn | Kabiyè | Kabɩyɛ |  |
kea_Latn | Kabuverdianu | kabuverdianu |  | Cape Verdean Creole; Creole
khm_Khmr | Khmer | ភាសាខ្មែរ | km | Cambodian; Central Khmer; ខ្មែរ
kik_Latn | Kikuyu | Gĩkũyũ | ki | Gikuyu
kin_Latn | Kinyarwanda | Ikinyarwanda | rw |
kir_Cyrl | Kyrgyz | кыргызча | ky | Kirghiz
kmb_Latn | Kimbundu | Kimbundu |  | North Mbundu
kon_Latn | Kongo | Kikongo | kg | ktu; ktu_Latn; Kituba
kor_Hang | Korean | 한국어 | ko | ko_Kore; kor_Kore
kmr_Latn | Northern Kurdish | Kurdî (Kurmancî) | ku | kur; Kurmanji; Kurdish; Kurdî
lao_Laoo | Lao | ລາວ | lo | Laotian
lvs_Latn | Standard Latvian | latviešu | lv | lav; Latvian
lij_Latn | Ligurian | ligure |  | Genoese
lim_Latn | Limburgish | Limburgs | li | Limburgan
lin_Latn | Lingala | lingála | ln |
lit_Latn | Lithuanian | lietuvių | lt |
lmo_Latn | Lombard | lombard |  |
ltg_Latn | Latgalian | latgalīšu |  |
ltz_Latn | Luxembourgish | Lëtzebuergesch | lb |
lua_Latn | Luba-Kasai | Tshiluba |  | Luba-Lulua
lug_Latn | Ganda | Luganda | lg |
luo_Latn | Luo | Dholuo |  | Luo (Kenya and Tanzania)
lus_Latn | Mizo | Mizo ṭawng |  | Lushai
mag_Deva | Magahi | मगही |  |
mai_Deva | Maithili | मैथिली |  |
mal_Mlym | Malayalam | മലയാളം | ml |
mar_Deva | Marathi | मराठी | mr |
min_Latn | Minangkabau | Baso Minangkabau |  |
mkd_Cyrl | Macedonian | македонски | mk | mac
plt_Latn | Plateau Malagasy | Malagasy | mg | mlg
mlt_Latn | Maltese | Malti | mt |
mni_Beng | Manipuri | মৈতৈলোন্ |  | Meitei
khk_Cyrl | Halh Mongolian | монгол | mn | mon; Mongolian; Khalkha; монгол хэл
mos_Latn | Mossi | Mooré |  | Moore
mri_Latn | Māori | te reo Māori | mi | mao
zsm_Latn | Standard Malay | Bahasa Melayu | ms | msa; may; Malay; Bahasa Malaysia
mya_Mymr | Burmese | မြန်မာ | my | bur; Myanmar
nld_Latn | Dutch | Nederlands | nl | dut; Flemish; Vlaams
nno_Latn | Norwegian Nynorsk | norsk nynorsk | nn | Nynorsk
nob_Latn | Norwegian Bokmål | norsk bokmål | nb | no; nor; Norwegian; Bokmål; norsk
npi_Deva | Nepali | नेपाली | ne | nep
nso_Latn | Northern Sotho | Sesotho sa Leboa |  | Sepedi; Pedi; Sotho
nus_Latn | Nuer | Thok Nath |  |
nya_Latn | Nyanja | Chichewa | ny | Chewa; Chinyanja
oci_Latn | Occitan | occitan | oc | Lenga d'òc
gaz_Latn | West Central Oromo | Afaan Oromoo | om | orm; Oromo; Oromoo
ory_Orya | Odia | ଓଡ଼ିଆ | or | ori; Oriya
pag_Latn | Pangasinan | Pangasinan |  |
pan_Guru | Punjabi | ਪੰਜਾਬੀ | pa | Eastern Panjabi; Panjabi
pap_Latn | Papiamento | Papiamentu |  |
pol_Latn | Polish | polski | pl |
por_Latn | Portuguese | português | pt | Brazilian Portuguese
prs_Arab | Dari | دری |  | fa_AF; Afghan Persian
pbt_Arab | Southern Pashto | پښتو | ps | pus; Pashto; Pushto
quy_Latn | Ayacucho Quechua | Runasimi | qu | que; Quechua
ron_Latn | Romanian | română | ro | rum; mo; mol; Moldavian; Moldovan
run_Latn | Rundi | Ikirundi | rn | Kirundi
rus_Cyrl | Russian | русский | ru |
sag_Latn | Sango | Sängö | sg |
san_Deva | Sanskrit | संस्कृतम् | sa |
sat_Beng | Santali | ᱥᱟᱱᱛᱟᱲᱤ |  | sat_Olck
scn_Latn | Sicilian | sicilianu |  |
shn_Mymr | Shan | လိၵ်ႈတႆး |  |
sin_Sinh | Sinhala | සිංහල | si | Sinhalese
slk_Latn | Slovak | slovenčina | sk | slo
slv_Latn | Slovenian | slovenščina | sl | Slovene
smo_Latn | Samoan | Gagana Sāmoa | sm |
sna_Latn | Shona | chiShona | sn |
snd_Arab | Sindhi | سنڌي | sd |
som_Latn | Somali | Soomaali | so |
sot_Latn | Southern Sotho | Sesotho | st | Sotho
spa_Latn | Spanish | español | es | Castilian; castellano
als_Latn | Tosk Albanian | shqip | sq | sqi; alb; Albanian
srd_Latn | Sardinian | sardu | sc |
srp_Cyrl | Serbian | српски | sr | Serbian Cyrillic; Serbo-Croatian; sh; hbs; srpski
ssw_Latn | Swati | siSwati | ss | Swazi
sun_Latn | Sundanese | Basa Sunda | su |
swe_Latn | Swedish | svenska | sv |
swh_Latn | Swahili | Kiswahili | sw | swa
szl_Latn | Silesian | ślōnski |  |
tam_Taml | Tamil | தமிழ் | ta |
tat_Cyrl | Tatar | татарча | tt |
tel_Telu | Telugu | తెలుగు | te |
tgk_Cyrl | Tajik | тоҷикӣ | tg |
tgl_Latn | Tagalog | Tagalog | tl | fil; fil_Latn; Filipino
tha_Thai | Thai | ไทย | th | ภาษาไทย
tir_Ethi | Tigrinya | ትግርኛ | ti |
taq_Latn | Tamasheq (Latin) | Tamasheq |  | Tamasheq; Tuareg; Berber
taq_Tfng | Tamasheq (Tifinagh) | ⵜⴰⵎⴰⵌⴰⵆ |  | Tamasheq; Tuareg; Berber
tpi_Latn | Tok Pisin | Tok Pisin |  |
tsn_Latn | Tswana | Setswana | tn |
tso_Latn | Tsonga | Xitsonga | ts |
tuk_Latn | Turkmen | türkmençe | tk | türkmen dili
tum_Latn | Tumbuka | Chitumbuka |  |
tur_Latn | Turkish | Türkçe | tr |
twi_Latn | Twi | Twi | tw | twi_Latn_akua1239; Akuapem Twi
tzm_Tfng | Central Atlas Tamazight | ⵜⴰⵎⴰⵣⵉⵖⵜ |  | Tamazight; Berber; zgh; zgh_Tfng
uig_Arab | Uyghur | ئۇيغۇرچە | ug | Uighur
ukr_Cyrl | Ukrainian | українська | uk |
umb_Latn | Umbundu | Umbundu |  | South Mbundu
urd_Arab | Urdu | اردو | ur |
uzn_Latn | Northern Uzbek | oʻzbekcha | uz | uzb; Uzbek; oʻzbek
vec_Latn | Venetian | vèneto |  | veneto
vie_Latn | Vietnamese | Tiếng Việt | vi |
war_Latn | Waray | Winaray |  | Waray-Waray
wol_Latn | Wolof | Wolof | wo |
xho_Latn | Xhosa | isiXhosa | xh |
ydd_Hebr | Eastern Yiddish | ייִדיש | yi | yid; ji; Yiddish
yor_Latn | Yoruba | Yorùbá | yo |
yue_Hant | Cantonese | 粵語 |  | Yue Chinese; zh_yue; 广东话; 廣東話; 粤语
zho_Hans | Chinese (Simplified) | 简体中文 | zh | chi; cmn; cmn_Hans; zh_cmn; zh_CN; Chinese; Simplified Chinese; Mandarin; Mandarin Chinese; 中文; 汉语; 普通话
zho_Hant | Chinese (Traditional) | 繁體中文 | zh | cmn_Hant; zh_TW; zh_HK; zh_MO; Traditional Chinese; Taiwanese Mandarin; 正體中文; 國語; 漢語
zul_Latn | Zulu | isiZulu | zu |
"""

# The usual script of the languages that SONAR has in two, for queries that name no script.
USUAL_SCRIPT = frozenset({"ace_Latn", "bjn_Latn", "kas_Arab", "knc_Latn", "taq_Latn", "zho_Hans"})

# SONAR's sat_Beng is in fact written in Ol Chiki.
TRUE_SCRIPT = {"sat_Beng": "Olck"}

SCRIPTS = {
    "Arab": "Arabic",
    "Armn": "Armenian",
    "Beng": "Bengali",
    "Cyrl": "Cyrillic",
    "Deva": "Devanagari",
    "Ethi": "Ethiopic",
    "Geor": "Georgian",
    "Grek": "Greek",
    "Gujr": "Gujarati",
    "Guru": "Gurmukhi",
    "Hang": "Hangul",
    "Hans": "Simplified Han",
    "Hant": "Traditional Han",
    "Hebr": "Hebrew",
    "Jpan": "Japanese",
    "Khmr": "Khmer",
    "Knda": "Kannada",
    "Laoo": "Lao",
    "Latn": "Latin",
    "Mlym": "Malayalam",
    "Mymr": "Myanmar",
    "Olck": "Ol Chiki",
    "Orya": "Odia",
    "Sinh": "Sinhala",
    "Taml": "Tamil",
    "Telu": "Telugu",
    "Tfng": "Tifinagh",
    "Thai": "Thai",
    "Tibt": "Tibetan",
}
