"""The planted operations are where and what they are said to be: shown by exact exchanges."""

import random
from functools import cache
from itertools import product

import pytest
import torch

from probes.errors import ModelError
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.site import Site
from probes.observe.gate import answer_questions, gate, gate_behavior
from probes.prompts.batch import tokenize
from probes.prompts.held_out import family_split
from probes.prompts.pair_batch import tokenize_pairs
from probes.testing.planted_patterns import KINDS, MINUS, PLUS, SEEN_NOUNS, fox_pattern, planted_fox

NOUNS = fox_pattern().lexicon.words("noun")
RIGHT_ALWAYS = ("template", "lexical", "rotated")


@cache
def build(kind):
    return planted_fox(kind)


@cache
def grid():
    """A question for each verb and noun, those that take away first; numbers vary with both."""
    pattern, found = fox_pattern(), []
    for side, verbs in ((pattern, MINUS), (pattern.flipped(), PLUS)):
        for (v, verb), (n, noun) in product(enumerate(verbs), enumerate(NOUNS)):
            slots = {"x": 8 + (v + n) % 7, "y": 2 + (3 * v + n) % 4, "thing": noun, "op": verb}
            found.append(
                side.make_question(side.templates[n % 2], slots, ("digits", "words")[v % 2])
            )
    return tuple(found)


@cache
def slots():
    """Operation, verb pair, noun, x and y of each question."""
    whole = [dict(question.slots) for question in grid()]
    verbs = [(*MINUS, *PLUS).index(w["op"]) for w in whole]
    each = zip(verbs, whole, strict=True)
    return [(v // 6, v % 6, NOUNS.index(w["thing"]), w["x"], w["y"]) for v, w in each]


def rows(keep):
    return torch.tensor([n for n, asked in enumerate(slots()) if keep(*asked)])


EVERY = torch.arange(192)


def turned(rows):
    """The same questions with the opposite verbs."""
    return (rows + 96) % 192


def strangers(those, *, same_noun, same_operation=False, seed=0):
    """For each question another of those, with other numbers, and with its noun or another."""
    rng, found, facts = random.Random(seed), [], slots()
    for op, _, noun, x, y in (facts[row] for row in those.tolist()):
        fits = [
            row
            for row in those.tolist()
            if (facts[row][0] == op) == same_operation
            and (facts[row][2] == noun) == same_noun
            and facts[row][3] != x
            and facts[row][4] != y
        ]
        found.append(rng.choice(fits))
    return torch.tensor(found)


@cache
def batch():
    """The questions as all kinds see them, as they share their words."""
    return tokenize(build("template").model.tokenizer, grid())


def recorded(kind, rows=EVERY):
    return _recorded(kind, tuple(rows.tolist()))


@cache
def _recorded(kind, rows):
    found, rows = batch(), torch.tensor(rows)
    return run_with_cache(
        build(kind).model, found.ids[rows], found.mask[rows], found.positions[rows]
    )


@cache
def states(kind):
    """What layer 1 reads at the verbs."""
    return recorded(kind).resid[1][batch().role_mask("op")]


def said(logits, rows):
    return logits.argmax(-1).float()


def exchanged(kind, theirs, role="op"):
    """What is said, number and noun, with the residual that layer 1 reads at a role exchanged."""
    where, cell = {role: batch().role_mask(role)}, Site(1, "resid", role)
    return patch_sites(recorded(kind), recorded(kind, theirs), [cell], where, said)[0].long()


def told(kind, rows, new):
    """What is said if layer 1 reads this at the verbs."""
    found, at = batch(), batch().role_mask("op")[rows]

    def put(value):
        value = value.clone()
        value[at] = new
        return value

    with build(kind).model.editing({"blocks.1.hook_resid_pre": put}):
        logits = build(kind).model.logits(found.ids[rows], found.mask[rows])
    return logits.argmax(-1).gather(1, found.positions[rows])


def right(found, rows):
    """Whether each number is the answer to these questions."""
    return found[:, 0] == batch().readout("number").answer[rows]


def share(found, rows):
    return float(right(found, rows).float().mean())


# What is asked.


def test_the_questions_have_the_roles_of_the_shipped_ones_at_the_same_places():
    pattern = fox_pattern()
    assert set(pattern.contrasts) == {"operation", "x", "y", "thing", "paraphrase"}
    seven = {"x": 7, "y": 3, "thing": "foxes", "op": "lose"}
    drawn = [pattern.make_question(frame, seven, "digits") for frame in pattern.templates]
    asked = [question for question in drawn if question is not None]
    assert asked[0].full_text == (
        "I have 7 foxes . I lose 3 . How many foxes do I have now ? Answer: 4 foxes"
    )
    found = tokenize(build("template").model.tokenizer, asked)
    roles = {"have", "x", "thing", "op", "y", "ask", "thing_asked", "answer"}
    assert set(found.roles) == roles | {"bos", "rest", "reply_number", "reply_noun"}
    assert torch.equal(*found.role_of)
    assert not torch.equal(*found.ids)
    assert [pattern.match(question.text) for question in asked] == asked


def test_each_word_and_each_number_is_one_known_token():
    tokenizer, lexicon = build("template").model.tokenizer, fox_pattern().lexicon
    words = [*map(str, range(41)), *lexicon.number_words, *lexicon.words("noun"), *MINUS, *PLUS]
    words += [word for p in fox_pattern().sample_questions(20, seed=0) for word in p.text.split()]
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert len(ids) == len(words)
    assert len(set(ids)) == len(set(words))
    assert tokenizer.unk_token_id not in ids


def test_the_last_nouns_are_those_that_the_family_never_sees_taken_away():
    nouns = fox_pattern().lexicon.words("noun")
    assert set(nouns[-8:]) == family_split().nouns
    assert len(nouns) == 16
    assert not set(SEEN_NOUNS) & family_split().nouns


@pytest.mark.parametrize("contrast", ["operation", "x", "y", "thing", "paraphrase"])
def test_pairs_of_every_contrast_align_token_by_token(contrast):
    fox = build("template")
    found = tokenize_pairs(fox.model.tokenizer, fox.pattern.sample_pairs(contrast, 12, seed=0))
    assert found.fully_aligned.all()


# Who can do it.


@pytest.mark.parametrize("kind", RIGHT_ALWAYS)
def test_the_gates_of_number_and_noun_are_open_in_both_operations(kind):
    fox = build(kind)
    for pattern in (fox.pattern, fox.pattern.flipped()):
        for found in gate(fox.model, pattern, prompts=20):
            assert found.state == "open"
            assert found.accuracy.value == 1


def test_the_table_knows_the_cells_it_was_shown_and_says_many_to_all_others():
    fox = build("lookup")
    many = fox.model.tokenizer.convert_tokens_to_ids("many")
    for pattern, seen in product((fox.pattern, fox.pattern.flipped()), (True, False)):
        held = lambda q, seen=seen: ("cell" in family_split().held_out_axes(q)) != seen  # noqa: E731
        asked = pattern.sample_questions(20, seed=0, keep=held)
        found = answer_questions(fox.model, asked)
        number, noun = gate_behavior(found, asked, seed=0)
        assert number.accuracy.value == seen
        assert (number.state, noun.state) == ("open" if seen else "closed", "open")
        assert bool((found.predicted[:, 0] == many).all()) != seen


@pytest.mark.parametrize("kind", RIGHT_ALWAYS)
def test_a_number_leads_its_neighbors_by_what_the_readout_says(kind):
    """2sn - n², four times: one less than the sum falls behind by 4, and two less by 16."""
    answers = torch.tensor([int(question.answer("number")) for question in grid()])
    names = [str(number) for number in range(21)]
    ids = torch.tensor(build(kind).model.tokenizer.convert_tokens_to_ids(names))
    logits = recorded(kind).logits[:, 0][:, ids]
    falls = logits.gather(1, torch.stack([answers, answers - 1, answers - 2], 1)).diff(dim=1)
    # A sum is at most 0.03 off, as the norms feel such numbers beside the constant.
    wanted = torch.tensor([-4.0, -12.0]).expand(len(falls), 2)
    torch.testing.assert_close(falls, wanted, atol=0.25, rtol=0)


# Where the operation is, and what it says to other sentences.


@pytest.mark.parametrize(
    ("kind", "same_noun", "flips", "stays"),
    [
        ("template", True, 1, 0),
        ("template", False, 1, 0),
        ("lexical", True, 1, 0),
        ("lexical", False, 1, 0),
        ("rotated", True, 1, 0),
        # Neither operation reaches the answer: it says x.
        ("rotated", False, 0, 0),
    ],
)
def test_the_verb_of_a_strange_sentence_turns_the_operation(kind, same_noun, flips, stays):
    found = exchanged(kind, strangers(EVERY, same_noun=same_noun))
    assert (share(found, turned(EVERY)), share(found, EVERY)) == (flips, stays)


@pytest.mark.parametrize("same_noun", [True, False])
def test_the_table_is_read_by_a_strange_verb_wherever_it_has_the_cell(same_noun):
    found = exchanged("lookup", strangers(EVERY, same_noun=same_noun))
    axes = [family_split().held_out_axes(grid()[row]) for row in turned(EVERY)]
    seen = torch.tensor(["cell" not in some for some in axes])
    assert 0 < int(seen.sum()) < len(seen)
    assert torch.equal(right(found, turned(EVERY)), seen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_strange_verb_leaves_the_noun(kind):
    found = exchanged(kind, strangers(EVERY, same_noun=False))
    assert torch.equal(found[:, 1], batch().readout("noun").answer)


@pytest.mark.parametrize("kind", RIGHT_ALWAYS)
@pytest.mark.parametrize("role", ["have", "thing", "ask", "thing_asked", "rest", "answer"])
def test_no_other_word_holds_the_operation(kind, role):
    """The answer of "rotated" holds its noun, which is the same in both here."""
    assert share(exchanged(kind, strangers(EVERY, same_noun=True), role), EVERY) == 1


@pytest.mark.parametrize(("kind", "stays"), [("template", 1), ("lexical", 1), ("rotated", 0)])
def test_a_verb_of_the_same_side_matters_only_where_each_noun_has_a_code(kind, stays):
    theirs = strangers(EVERY, same_noun=False, same_operation=True)
    assert share(exchanged(kind, theirs), EVERY) == stays


@pytest.mark.parametrize("kind", KINDS)
def test_operations_differ_at_the_verb_in_the_state_and_the_word_alone(kind):
    differs = (states(kind) != states(kind)[turned(EVERY)]).any(0).nonzero()[:, 0]
    assert set(differs.tolist()) == {*build(kind).state, *build("lexical").state}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_has_a_dimension_for_all_for_each_noun_or_for_each_verb(kind):
    expected = torch.zeros(192, len(build(kind).state))
    for row, (op, verb, noun, _, _) in enumerate(slots()):
        sign = 4 if op else -4
        own = {"lexical": (6 * op + verb, 1), "rotated": (noun, sign)}
        column, size = own.get(kind, (0, sign))
        expected[row, column] = size
    found = states(kind)[:, build(kind).state]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# What a direction that is fitted on some sentences says of others.


def turned_along(kind, seen, unseen, *, same_noun=False):
    """The shares turned and left in some questions by the direction fitted on others.

    The direction is the mean difference of the operations at the verb; what it says is exchanged
    for what it says in a strange sentence, which was not fitted either.
    """
    fitted, asked, found = rows(seen), rows(unseen), states(kind)
    less = fitted[fitted < 96]
    unit = torch.nn.functional.normalize((found[turned(less)] - found[less]).mean(0), dim=0)
    own, theirs = found[asked], found[strangers(asked, same_noun=same_noun)]
    after = told(kind, asked, own + ((theirs - own) @ unit)[:, None] * unit)
    return share(after, turned(asked)), share(after, asked)


@pytest.mark.parametrize(
    ("kind", "shares"), [("template", (1, 0)), ("lexical", (0, 1)), ("rotated", (0, 1))]
)
@pytest.mark.parametrize("pairs", [{0, 1, 2}, {1, 3, 5}, {2, 3, 4, 5}])
def test_a_direction_of_some_verbs_turns_the_others_in_the_template_alone(kind, shares, pairs):
    found = turned_along(kind, lambda _, v, *__: v in pairs, lambda _, v, *__: v not in pairs)
    assert found == shares


@pytest.mark.parametrize(("kind", "shares"), [("template", (1, 0)), ("rotated", (0, 1))])
def test_a_direction_of_some_nouns_turns_the_others_in_the_template_alone(kind, shares):
    found = turned_along(kind, lambda _, __, n, *___: n < 8, lambda _, __, n, *___: n >= 8)
    assert found == shares


def test_within_one_noun_the_rotated_state_is_shared_by_all_verbs():
    seen, unseen = lambda _, v, n, *__: n == 3 and v < 3, lambda _, v, n, *__: n == 3 and v >= 3
    assert turned_along("rotated", seen, unseen, same_noun=True) == (1, 0)


def test_a_rotation_turns_the_code_of_one_noun_into_that_of_another():
    """Two dimensions exchanged, and what was of no use to another noun turns every answer."""
    strange, code = strangers(EVERY, same_noun=False), build("rotated").state
    nouns = [noun for _, _, noun, _, _ in slots()]
    theirs = states("rotated")[strange].clone()
    for row, other in enumerate(strange.tolist()):
        here, there = code[nouns[row]], code[nouns[other]]
        theirs[row, [here, there]] = theirs[row, [there, here]]
    assert share(told("rotated", EVERY, theirs), turned(EVERY)) == 1


# How they are made.


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_heads_and_leaves_answers_and_the_rest_of_the_program_alone(kind):
    before = torch.get_rng_state()
    one, same, other = build(kind), planted_fox(kind), planted_fox(kind, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [list(fox.model.bridge.parameters()) for fox in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))
    questions = one.pattern.sample_questions(20, seed=0)
    assert torch.equal(
        answer_questions(one.model, questions).predicted,
        answer_questions(other.model, questions).predicted,
    )


def test_a_kind_that_is_not_planted_is_refused():
    with pytest.raises(ModelError, match="template, lexical, lookup, rotated"):
        planted_fox("memory")
