"""Choice of the amount and the change that a question asks about, of one owner."""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.errors import MatchError
from probes.prompts.english.amounts import Amount
from probes.prompts.english.owners import UNCLEAR, names_before, resolve
from probes.prompts.english.sentences import Word
from probes.prompts.english.words import (
    GIVING,
    MONEY,
    OWNER_OF,
    POSSESSIVE_OF,
    REMAINDER,
    THIRD_PERSON,
)

_NO_ANTECEDENT = frozenset(OWNER_OF.values()) | {"", UNCLEAR}


def unmatched(text: str, expected: str, found: str = "none") -> MatchError:
    """Refusal of a text with what was looked for and what was found."""
    return MatchError(
        f"No number story in {text[:160]!r}: looked for {expected}, and found {found}"
    )


@dataclass(frozen=True, slots=True)
class Question:
    """Question of a text: its words, its owner as written, and the nouns that it asks for."""

    words: tuple[Word, ...]
    owner: str
    noun: tuple[str, ...]


class Holders:
    """Owners of the amounts and of the question of a text, with pronouns resolved."""

    def __init__(self, told: Sequence[Word], amounts: Sequence[Amount], question: Question) -> None:
        self._told, self._amounts = told, amounts
        # Both in one text: at most one of them is the only name.
        said = {OWNER_OF.get(word.lower, "") for word in (*told, *question.words)}
        self._has_both = {"he", "she"} <= said
        self._meant: dict[tuple[str, frozenset[str]], str] = {}
        self._of = [self._resolve(amount.owner, amount) for amount in amounts]
        self.asked = self._resolve(question.owner, None)

    def of(self, amount: Amount) -> str:
        """Owner of an amount; "" where none is told."""
        return self._of[next(at for at, each in enumerate(self._amounts) if each is amount)]

    def people(self, amount: Amount) -> set[str]:
        """Owners that words near an amount may name."""
        return {self._resolve(person, amount) for person in amount.people}

    def _resolve(self, owner: str, amount: Amount | None) -> str:
        head, _, rest = owner.partition(" ")
        if head not in THIRD_PERSON:
            return owner
        # A pronoun means whom it meant before, "Tom … He gives Ann 2. How many does he have?",
        # until a sentence begins with another name.
        leading = names_before(self._told, self._place(amount), leading=True)
        key = (head, frozenset(leading))
        meant = self._meant.get(key) or self._antecedent(head, amount)
        if amount is None or owner == amount.owner:
            self._meant.setdefault(key, meant)
        return f"{meant} {rest}".strip() if meant != UNCLEAR else UNCLEAR

    def _place(self, amount: Amount | None) -> int:
        """First character of an amount, or the end of what is told."""
        return amount.start if amount else max((word.end for word in self._told), default=0)

    def _antecedent(self, pronoun: str, amount: Amount | None) -> str:
        names, led = self._known(amount)
        if not names and not led:
            names, led = self._known(None)
        if amount and amount.actor in names:
            return resolve(pronoun, names - {amount.actor}, led)
        if self._has_both and len(names or led) == 1:
            return UNCLEAR
        return resolve(pronoun, names, led)

    def _known(self, amount: Amount | None) -> tuple[set[str], set[str]]:
        """Names, and owners led by a possessive, before an amount or in all that is told."""
        place = self._place(amount)
        owners = {each.owner for each in self._amounts if each.start < place} - _NO_ANTECEDENT
        led = {owner for owner in owners if " " in owner}
        return names_before(self._told, place) | (owners - led), led

    def named(self) -> str:
        """Owners of a text in words, for a message."""
        owners = dict.fromkeys([*self._of, self.asked])
        return " and ".join(repr(_written(owner)) for owner in owners if owner)


def _written(owner: str) -> str:
    """An owner in words: "my brother", "tom's sister"."""
    lead, _, rest = owner.partition(" ")
    return " ".join((POSSESSIVE_OF.get(lead, f"{lead}'s"), rest)) if rest else owner


def choose(
    text: str, told: Sequence[Word], amounts: list[Amount], question: Question
) -> tuple[Amount, Amount]:
    """The one amount and the one change of what is asked.

    Raises:
        MatchError: There is none or more than one, or they may have different owners.
    """
    noun, holders = question.noun, Holders(told, amounts, question)
    same = [amount for amount in amounts if _is_same(amount, noun, amounts)]
    own = _of_owner(text, same, holders)
    if any(not amount.kind for amount in own):
        raise unmatched(text, "a known verb for each number of what is asked about")
    changes = [amount for amount in own if amount.kind in ("minus", "plus")]
    haves = [amount for amount in own if amount.kind == "have"]
    if not haves and len(changes) == 2 and changes[0].kind == "plus":
        # "She received 7 dollars and spent 5": what was received is what there is.
        haves, changes = changes[:1], changes[1:]
    for found, what in ((haves, "one amount"), (changes, "one change of it")):
        if len(found) != 1:
            counted = " ".join(noun) or "what is asked about"
            if not found and len(own) < len(same):
                raise _other_owner(text, holders)
            raise unmatched(text, f"{what} of {counted!r}", str(len(found) or "none"))
    _check_owners(text, haves[0], changes[0], holders)
    _check_unowned(text, haves[0], holders, question)
    return haves[0], changes[0]


def _other_owner(text: str, holders: Holders) -> MatchError:
    expected = "an amount, its change and a question of one owner"
    return unmatched(text, expected, holders.named())


def _of_owner(text: str, same: list[Amount], holders: Holders) -> list[Amount]:
    """Amounts without those of another owner than the asked one."""
    owners = [holders.of(amount) for amount in same]
    if UNCLEAR in owners or holders.asked == UNCLEAR:
        raise unmatched(
            text,
            "one person whom each 'he', 'she' or 'it' can mean (write names in their place)",
            "more",
        )
    kept: list[Amount] = []
    for amount, owner in zip(same, owners, strict=True):
        if not owner or not holders.asked or _is_one(owner, holders.asked):
            kept.append(amount)
        elif amount.kind != "have" and _reaches(amount, holders, holders.asked):
            # "Ann gives one back", told of Tom's nuts.
            raise _other_owner(text, holders)
    return kept


def _is_one(owner: str, other: str) -> bool:
    """Whether owners are the same; "the tree" is "her tree", but "his tree" is not."""
    heads = {owner.split()[-1], other.split()[-1]}
    return owner == other or (len(heads) == 1 and (" " in owner) != (" " in other))


def _reaches(amount: Amount, holders: Holders, owner: str) -> bool:
    """Whether a change by another may change what an owner has, too."""
    return bool(holders.people(amount) & {owner, UNCLEAR, "back"})


def _check_owners(text: str, have: Amount, change: Amount, holders: Holders) -> None:
    """Refuse changes of what another has, and those that name another who may have more."""
    owner = holders.of(have) or holders.asked
    changed = holders.of(change)
    is_given = change.verb.split()[0] in GIVING and change.kind == "minus"
    if owner and changed and not _is_one(changed, owner):
        raise _other_owner(text, holders)
    if is_given and owner and owner in holders.people(change):
        # "2 nuts are given to him."
        raise unmatched(text, "a change by which one has less", f"one that names {owner!r}, too")
    if owner and change.actor == change.owner and changed and _is_one(changed, owner):
        # "Tom has 9 nuts. Tom steals 2."
        raise unmatched(text, "another from whom it is stolen", f"{owner!r} as the thief alone")
    for amount in (have, change):
        if amount.doubt:
            expected = "a change that names only its owner"
            raise unmatched(text, expected, repr(amount.doubt))


def _check_unowned(text: str, have: Amount, holders: Holders, question: Question) -> None:
    """Refuse "There are 5 nuts. Tom takes 2. How many does Tom have?": he may have but 2."""
    asked = {word.lower for word in question.words}
    if holders.asked and not holders.of(have) and not asked & (REMAINDER - {"now", "then"}):
        raise unmatched(text, f"an amount that {holders.asked!r} has", "one without an owner")


def _is_same(amount: Amount, noun: tuple[str, ...], amounts: list[Amount]) -> bool:
    """Whether an amount counts what is asked about; "5 more" counts what was counted before."""
    if not amount.noun:
        before = [other for other in amounts[: amounts.index(amount)] if other.noun]
        return not before or not noun or _is_same(before[-1], noun, amounts)
    if not noun:
        return True
    if amount.noun[-1] != noun[-1] and not {amount.noun[-1], noun[-1]} <= MONEY:
        return False
    # With "sweet cookies" and "salty cookies", the question says which.
    kinds = {other.noun[:-1] for other in amounts if other.noun and other.noun[-1] == noun[-1]}
    return len(kinds - {()}) < 2 or amount.noun[:-1] == noun[:-1] or not amount.noun[:-1]
