"""Languages by name: published data says ``English`` where a tag of the language (BCP 47) is ``en``.

In: a cell. Out: a tag, or None where it names no language that is known here. Names are the English ones of ISO 639-1.
"""

from __future__ import annotations

import re

NAMES = (
    "af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, be belarusian, bg bulgarian, bn bengali, "
    "bo tibetan, br breton, bs bosnian, ca catalan, co corsican, cs czech, cy welsh, da danish, de german, el greek, "
    "en english, eo esperanto, es spanish, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, "
    "fy frisian, ga irish, gd gaelic, gl galician, gn guarani, gu gujarati, ha hausa, he hebrew, hi hindi, "
    "hr croatian, ht haitian, hu hungarian, hy armenian, ia interlingua, id indonesian, ig igbo, is icelandic, "
    "it italian, ja japanese, jv javanese, ka georgian, kk kazakh, km khmer, kn kannada, ko korean, ku kurdish, "
    "ky kyrgyz, la latin, lb luxembourgish, lo lao, lt lithuanian, lv latvian, mg malagasy, mi maori, mk macedonian, "
    "ml malayalam, mn mongolian, mr marathi, ms malay, mt maltese, my burmese, nb bokmal, ne nepali, nl dutch, "
    "nn nynorsk, no norwegian, oc occitan, om oromo, or odia, pa punjabi, pl polish, ps pashto, pt portuguese, "
    "qu quechua, ro romanian, ru russian, rw kinyarwanda, sa sanskrit, sd sindhi, si sinhala, sk slovak, "
    "sl slovenian, sm samoan, sn shona, so somali, sq albanian, sr serbian, st sesotho, su sundanese, sv swedish, "
    "sw swahili, ta tamil, te telugu, tg tajik, th thai, ti tigrinya, tk turkmen, tl tagalog, tn tswana, tr turkish, "
    "tt tatar, ug uyghur, uk ukrainian, ur urdu, uz uzbek, vi vietnamese, vo volapuk, wo wolof, xh xhosa, yi yiddish, "
    "yo yoruba, zh chinese, zu zulu"
)
OTHER_NAMES = {
    "castilian": "es",
    "farsi": "fa",
    "filipino": "tl",
    "flemish": "nl",
    "haitian creole": "ht",
    "kirghiz": "ky",
    "mandarin": "zh",
    "scots gaelic": "gd",
    "simplified chinese": "zh-Hans",
    "slovene": "sl",
    "traditional chinese": "zh-Hant",
}
BY_NAME = {name: tag for tag, name in (entry.split(" ", 1) for entry in NAMES.split(", "))} | OTHER_NAMES
RARER = (
    "aa ab ae ak an av ay ba bi bm ce ch cr cu cv dv dz ee ff fj gv ho hz ie ii ik io iu iw kg ki kj kl kr ks kv kw lg "
    "li ln lu mh na nd ng nr nv ny oj os pi rm rn sc se sg ss to ts tw ty ve wa za"
)
TWO_LETTERS = {*BY_NAME.values(), *RARER.split()}
THREE_LETTERS = (  # ISO 639-2 and 639-3, of which both forms are in use where they differ
    "afr af, alb sq, amh am, ara ar, arb ar, arm hy, asm as, aze az, baq eu, bel be, ben bn, bod bo, bos bs, bre br, "
    "bul bg, bur my, cat ca, ces cs, chi zh, cmn zh, cos co, cym cy, cze cs, dan da, deu de, dut nl, ell el, eng en, "
    "epo eo, est et, eus eu, fao fo, fas fa, fin fi, fra fr, fre fr, fry fy, geo ka, ger de, gla gd, gle ga, glg gl, "
    "gre el, grn gn, guj gu, hat ht, hau ha, heb he, hin hi, hrv hr, hun hu, hye hy, ibo ig, ice is, ina ia, ind id, "
    "isl is, ita it, jav jv, jpn ja, kan kn, kat ka, kaz kk, khm km, kin rw, kir ky, kor ko, kur ku, lao lo, lat la, "
    "lav lv, lit lt, ltz lb, mac mk, mal ml, mao mi, mar mr, may ms, mkd mk, mlg mg, mlt mt, mon mn, mri mi, msa ms, "
    "mya my, nep ne, nld nl, nno nn, nob nb, nor no, oci oc, ori or, orm om, pan pa, per fa, pes fa, pol pl, por pt, "
    "pus ps, que qu, ron ro, rum ro, rus ru, san sa, sin si, slk sk, slo sk, slv sl, smo sm, sna sn, snd sd, som so, "
    "sot st, spa es, sqi sq, srp sr, sun su, swa sw, swe sv, tam ta, tat tt, tel te, tgk tg, tgl tl, tha th, tib bo, "
    "tir ti, tsn tn, tuk tk, tur tr, uig ug, ukr uk, urd ur, uzb uz, vie vi, vol vo, wel cy, wol wo, xho xh, yid yi, "
    "yor yo, zho zh, zsm ms, zul zu"
)
SHORTER = dict(entry.split(" ") for entry in THREE_LETTERS.split(", "))
NO_LANGUAGE = ("unknown", "und", "none", "other", "nan", "n/a", "")
PROGRAMMING = ("css", "lua", "php", "sql", "vue", "xml", "zig")  # look like tags of three letters
TAG = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{2,8})*", re.IGNORECASE)


def tag_of(value: object) -> str | None:
    """Return the tag that a cell gives or names; None where it is no language.

    A tag stays as it is written, but for ``_``, the capitals of its first part, and three letters where two name the
    language (``eng`` is ``en``, as BCP 47 has it); ``unknown`` is none.
    """
    text = " ".join(str(value).split())
    name = text.casefold()
    if name in NO_LANGUAGE:
        return None
    if name in BY_NAME:
        return BY_NAME[name]
    tag = text.replace("_", "-")
    first, dash, rest = tag.partition("-")
    is_known = first.lower() in TWO_LETTERS or (len(first) == 3 and first.lower() not in PROGRAMMING)
    if not is_known or not TAG.fullmatch(tag):
        return None
    return SHORTER.get(first.lower(), first.lower()) + dash + rest
