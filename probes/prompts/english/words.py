"""Word lists of number stories: verbs by what they do to an amount, numbers, pronouns."""

from functools import cache


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Base form, then irregular forms of the past; regular forms are derived.
_VERBS = {
    "minus": (
        "take taken took, take away, give gave given, give away, lose lost, sell sold, drop, "
        "spend spent, eat ate eaten, drink drank drunk, use, use up, throw threw thrown, break "
        "broke broken, donate, remove, delete, discard, share, return, pay paid, lend lent, burn, "
        "hand, mail, send sent, ship, destroy, smash, steal stole stolen, leave, fly flew flown, "
        "run ran, swim swam, go went gone, move, die, pop, melt, waste, consume, feed fed, read, "
        "watch, cut off, cut, pick, plant, put, fall fell fallen, disappear, vanish, hide hid "
        "hidden, trade, recycle, serve, crack, tear tore torn, erase, uninstall, get off"
    ),
    "plus": (
        "get got gotten, find found, buy bought, receive, collect, gain, add, pick up, bring "
        "brought, bring in, earn, win won, borrow, gather, catch caught, make made, bake, draw "
        "drew drawn, build built, grow grew grown, download, install, arrive, join, come came, "
        "purchase, acquire, inherit, obtain, harvest, discover"
    ),
    "have": "have has had, own, hold held, keep kept, possess, start, begin began, raise, weigh",
}  # fmt: skip
PARTICLES = ("away", "up", "off", "in", "out", "down")
BE = frozenset(("is", "are", "was", "were", "be", "been", "am"))
AUXILIARIES = BE | {"do", "does", "did", "have", "has", "had", "would", "will", "can", "could"}
PRONOUNS = frozenset(("i", "he", "she", "they", "we", "you", "it"))
OBJECT_PRONOUNS = frozenset(("me", "him", "her", "them", "us", "you"))
# Words behind a number that end its noun phrase.
STOPS = _words(
    "of in on at to from for with by and or but then so than that who which while if when after "
    "before into onto off away out up down left more less fewer yesterday today now initially "
    "altogether already still only there this these those the a an his her my their our your its "
    "as because each every per during remaining remain remained long old new i he she they we you "
    "it me him them us how what not back again too also later soon tomorrow tonight instead"
)
MODIFIERS = _words("more of other different new old additional extra the his her my their")
MONEY = frozenset(("money", "dollar", "cent", "euro", "pound"))
BUYING, GIVING = ("buy", "purchase"), ("give", "send", "hand", "pay", "lend", "mail")
# Verbs that add or remove, as the rest of the sentence says.
AMBIGUOUS = frozenset(("cut", "pick", "put", "plant", "take", "leave", "move", "read"))
# A question with one of these compares, looks back, or asks for something else.
NO_REMAINDER = _words(
    "than first initially beginning originally before each cost need needs needed together "
    "altogether total fewer less difference farther start"
)
REMAINDER = _words("left remain remains remained remaining now still then")
RATES = _words("each every per apiece daily weekly")
UNKNOWN_AMOUNTS = _words("some several few many equal half twice rest another couple all most")
ARTICLES = frozenset(("a", "an", "the"))
# Owners: each pronoun by its subject, so that "his" and "him" are "he".
OWNER_OF = {
    **dict.fromkeys(("i", "me", "my", "mine", "myself"), "i"),
    **dict.fromkeys(("we", "us", "our", "ours", "ourselves"), "we"),
    **dict.fromkeys(("you", "your", "yours", "yourself"), "you"),
    **dict.fromkeys(("he", "him", "his", "himself"), "he"),
    **dict.fromkeys(("she", "her", "hers", "herself"), "she"),
    **dict.fromkeys(("they", "them", "their", "theirs", "themselves"), "they"),
    **dict.fromkeys(("it", "its", "itself"), "it"),
}
THIRD_PERSON = frozenset(("he", "she", "they", "it"))
POSSESSIVE_OF = {
    **{"i": "my", "we": "our", "you": "your"},
    **{"he": "his", "she": "her", "they": "their", "it": "its"},
}
POSSESSIVES = frozenset(POSSESSIVE_OF.values())
# Verbs by which the subject has what another loses: "I take 2 nuts from Tom".
TAKING = frozenset(("take", "take away", "steal", "remove", "pick"))
# Words between a subject and its verb.
ADVERBS = _words(
    "already also then still now just only either both first later soon again today yesterday "
    "once always to up away all each"
)
KIN = _words(
    "sister brother mother father mom dad parents friend friends son daughter wife husband uncle "
    "aunt cousin neighbor teacher boss classmate"
)
TIMES = _words("end moment morning evening afternoon day week month year while all")
# What something is bought or made for that is no person.
PURPOSES = _words(
    "birthday birthdays lunch dinner breakfast supper school winter summer spring autumn free fun "
    "year week day month dollar dollars cent cents money home work christmas easter himself "
    "herself myself themselves ourselves yourself"
)
# Nothing of what is told beside these words is sure to have happened.
NEGATIONS = _words(
    "not never rarely seldom no none nobody nothing neither nor cannot without except unless "
    "cant dont doesnt didnt wont isnt arent wasnt werent hasnt havent hadnt wouldnt couldnt"
)
FUTURE = frozenset(("will", "shall"))
NAMES_TOO = frozenset(("will", "may", "hope"))
ALMOST = _words("almost nearly barely hardly scarcely")
# Words that make the number behind them inexact: "at least 2", "more than 2", "up to 2".
INEXACT = _words("about around approximately roughly between least most over under than to")
UNREAL_PAIRS = frozenset(
    tuple(pair.split())
    for pair in (
        *(
            "going to",
            "about to",
            "have to",
            "has to",
            "supposed to",
            "used to",
            "all but",
            "or so",
        ),
        *("instead of", "rather than"),
    )
)
_UNREAL_VERBS = (
    *("fail", "refuse", "decline", "want", "wish", "hope", "plan", "intend", "try", "attempt"),
    *("expect", "consider", "pretend", "promise", "offer", "threaten", "avoid", "deny", "need"),
    *("say", "tell", "think", "believe", "claim", "guess", "hear"),
    *("imagine", "dream", "forget", "refrain", "resist", "hesitate", "ask", "order", "prevent"),
)
# Numbers that are one only together with their neighbor.
SCALES = _words("thousand thousands million millions billion billions hundreds dozens")
NUMBER_PARTS = _words(
    "hundred dozen half halves third thirds quarter quarters fourth fourths fifth fifths tenth "
    "tenths percent per-cent times point squared"
)

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: value for value, word in enumerate(_UNITS)}
_NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS, 2)}
_NUMBERS |= {
    f"{ten}-{unit}": 10 * n + u
    for n, ten in enumerate(_TENS, 2)
    for u, unit in enumerate(_UNITS[1:10], 1)
}
_NUMBERS |= {"dozen": 12, "hundred": 100}


def number_value(word: str) -> int | None:
    """Whole number that a word or numeral writes, or None."""
    if word[:1].isdigit():
        digits = word.replace(",", "")
        # "²" is a digit, but no decimal one.
        return int(digits) if digits.isdecimal() and len(digits) < 16 else None
    return _NUMBERS.get(word.lower())


@cache
def verb_forms() -> dict[str, tuple[str, str]]:
    """Class ("minus", "plus" or "have") and base form of each form of each verb.

    A verb with a particle is listed with a space between them.
    """
    forms: dict[str, tuple[str, str]] = {}
    for kind, listed in _VERBS.items():
        for entry in listed.split(", "):
            base, *rest = entry.split()
            particle = f" {rest.pop()}" if rest and rest[-1] in PARTICLES else ""
            own = {base, *rest, *_regular_forms(base)}
            own |= {form for word, (_, verb) in forms.items() if verb == base for form in [word]}
            for form in own:
                forms.setdefault(form + particle, (kind, base + particle))
    return forms


def _regular_forms(base: str) -> set[str]:
    stem = base[:-1] if base.endswith("e") else base
    third = base + ("es" if base.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")
    if base.endswith("y") and base[-2] not in "aeiou":
        third, past = base[:-1] + "ies", base[:-1] + "ied"
    else:
        past = stem + "ed"
    doubled = base[-1] not in "aeiouwxy" and base[-2] in "aeiou" and base[-3:-2] not in "aeiou"
    double = {base + base[-1] + "ed", base + base[-1] + "ing"} if doubled else set()
    return {third, past, stem + "ing"} | double


UNREAL = frozenset.union(
    _words(
        "would could should might may can must ought maybe perhaps probably possibly unable "
        "false untrue forgot forgotten let lets let's said told thought heard"
    ),
    *({verb, *_regular_forms(verb)} for verb in _UNREAL_VERBS),
)


def singular(noun: str) -> str:
    """Singular of a regular plural, in lower case; other words as they are."""
    noun = noun.lower()
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith(("sses", "shes", "ches", "xes", "zes")):
        return noun[:-2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith("ss") else noun


def spell_number(value: int) -> str:
    """A number below 100 in words; others in digits."""
    if value == 12:
        return "twelve"
    return next((word for word, known in _NUMBERS.items() if known == value), str(value))
