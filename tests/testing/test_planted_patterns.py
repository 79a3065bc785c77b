"""Planted models represent the operation as stated, checked by interchange interventions."""

import random
from functools import cache
from itertools import product

import pytest
import torch

from probes.errors import ModelError
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.site import Site
from probes.observe.gate import answer_questions, gate, gate_behavior
from probes.prompts.held_out import family_split
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import tokenize_pairs
from probes.testing.planted_patterns import KINDS, MINUS, PLUS, SEEN_NOUNS, fox_pattern, planted_fox

NOUNS = fox_pattern().lexicon.words("noun")
ALWAYS_CORRECT = ("template", "lexical", "mixed", "rotated", "joint")
STATE_AT_VERB = tuple(kind for kind in KINDS if kind != "joint")


@cache
def build(kind):
    return planted_fox(kind)


@cache
def grid():
    """A question for each verb and noun, `MINUS` first; the numbers vary with both."""
    pattern, questions = fox_pattern(), []
    for side, verbs in ((pattern, MINUS), (pattern.flipped(), PLUS)):
        for (v, verb), (n, noun) in product(enumerate(verbs), enumerate(NOUNS)):
            slots = {"x": 8 + (v + n) % 7, "y": 2 + (3 * v + n) % 4, "thing": noun, "op": verb}
            number_format = ("digits", "words")[v % 2]
            questions.append(side.make_question(side.templates[n % 2], slots, number_format))
    return tuple(questions)


@cache
def slots():
    """Operation, pair of verbs, noun, x and y of each question."""
    by_question = [dict(question.slots) for question in grid()]
    verbs = [(*MINUS, *PLUS).index(values["op"]) for values in by_question]
    return [
        (verb // 6, verb % 6, NOUNS.index(values["thing"]), values["x"], values["y"])
        for verb, values in zip(verbs, by_question, strict=True)
    ]


def rows(keep):
    return torch.tensor([n for n, values in enumerate(slots()) if keep(*values)])


EVERY = torch.arange(192)


def flipped(rows):
    """The same questions with the opposite verbs."""
    return (rows + 96) % 192


def sample_sources(rows, *, same_noun, same_operation=False, seed=0):
    """For each question another one with other numbers, and the same or another noun."""
    rng, sources, values = random.Random(seed), [], slots()
    for op, _, noun, x, y in (values[row] for row in rows.tolist()):
        candidates = [
            row
            for row in rows.tolist()
            if (values[row][0] == op) == same_operation
            and (values[row][2] == noun) == same_noun
            and values[row][3] != x
            and values[row][4] != y
        ]
        sources.append(rng.choice(candidates))
    return torch.tensor(sources)


@cache
def batch():
    """The tokenized questions, equal for all kinds."""
    return tokenize(build("template").model.tokenizer, grid())


def cached_run(kind, rows=EVERY):
    return _cached_run(kind, tuple(rows.tolist()))


@cache
def _cached_run(kind, rows):
    questions, rows = batch(), torch.tensor(rows)
    inputs = questions.ids[rows], questions.mask[rows], questions.positions[rows]
    return run_with_cache(build(kind).model, *inputs)


@cache
def states(kind):
    """Residual stream before layer 1 at the verbs."""
    return cached_run(kind).resid[1][batch().role_mask("op")]


def top_tokens(logits, rows):
    return logits.argmax(-1).float()


def interchange(kind, sources, role="op"):
    """Number and noun answered after an interchange of `L1.resid` at a role."""
    masks, site = {role: batch().role_mask(role)}, Site(1, "resid", role)
    runs = cached_run(kind), cached_run(kind, sources)
    return patch_sites(*runs, [site], masks, top_tokens)[0].long()


def answers_with_state(kind, rows, state):
    """Number and noun answered when layer 1 reads `state` at the verbs."""
    questions, mask = batch(), batch().role_mask("op")[rows]

    def replace(value):
        value = value.clone()
        value[mask] = state
        return value

    with build(kind).model.editing({"blocks.1.hook_resid_pre": replace}):
        logits = build(kind).model.logits(questions.ids[rows], questions.mask[rows])
    return logits.argmax(-1).gather(1, questions.positions[rows])


def correct(answers, rows):
    """Whether each number is the answer to these questions."""
    return answers[:, 0] == batch().readout("number").answer[rows]


def accuracy(answers, rows):
    return float(correct(answers, rows).float().mean())


# The questions.


def test_both_templates_have_the_roles_of_the_shipped_pattern_at_the_same_positions():
    pattern = fox_pattern()
    assert set(pattern.contrasts) == {"operation", "x", "y", "thing", "paraphrase"}
    seven = {"x": 7, "y": 3, "thing": "foxes", "op": "lose"}
    questions = [pattern.make_question(t, seven, "digits") for t in pattern.templates]
    assert questions[0].full_text == (
        "I have 7 foxes . I lose 3 . How many foxes do I have now ? Answer: 4 foxes"
    )
    tokens = tokenize(build("template").model.tokenizer, questions)
    roles = {"have", "x", "thing", "op", "y", "ask", "thing_asked", "answer"}
    assert set(tokens.roles) == roles | {"bos", "rest", "reply_number", "reply_noun"}
    assert torch.equal(*tokens.role_of)
    assert not torch.equal(*tokens.ids)
    assert [pattern.match(question.text) for question in questions] == questions


def test_each_word_and_number_is_one_known_token():
    tokenizer, lexicon = build("template").model.tokenizer, fox_pattern().lexicon
    words = [*map(str, range(41)), *lexicon.number_words, *lexicon.words("noun"), *MINUS, *PLUS]
    words += [word for p in fox_pattern().sample_questions(20, seed=0) for word in p.text.split()]
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert len(ids) == len(words)
    assert len(set(ids)) == len(set(words))
    assert tokenizer.unk_token_id not in ids


def test_the_last_nouns_are_those_held_out_from_the_embedded_models():
    nouns = fox_pattern().lexicon.words("noun")
    assert set(nouns[-8:]) == family_split().nouns
    assert len(nouns) == 16
    assert not set(SEEN_NOUNS) & family_split().nouns


@pytest.mark.parametrize("contrast", ["operation", "x", "y", "thing", "paraphrase"])
def test_pairs_of_every_contrast_align_token_by_token(contrast):
    fox = build("template")
    pairs = tokenize_pairs(fox.model.tokenizer, fox.pattern.sample_pairs(contrast, 12, seed=0))
    assert pairs.fully_aligned.all()


# Capability.


@pytest.mark.parametrize("kind", ALWAYS_CORRECT)
def test_the_gates_of_number_and_noun_are_open_in_both_operations(kind):
    fox = build(kind)
    for pattern in (fox.pattern, fox.pattern.flipped()):
        for result in gate(fox.model, pattern, prompts=20):
            assert result.state == "open"
            assert result.accuracy.value == 1


def test_lookup_knows_the_cells_of_its_table_and_answers_many_to_all_others():
    fox = build("lookup")
    many = fox.model.tokenizer.convert_tokens_to_ids("many")

    def is_held_out(question):
        return "cell" in family_split().held_out_axes(question)

    for pattern, seen in product((fox.pattern, fox.pattern.flipped()), (True, False)):
        questions = pattern.sample_questions(
            20, seed=0, keep=lambda q, seen=seen: is_held_out(q) != seen
        )
        answers = answer_questions(fox.model, questions)
        number, noun = gate_behavior(answers, questions, seed=0)
        assert number.accuracy.value == seen
        assert (number.state, noun.state) == ("open" if seen else "closed", "open")
        assert bool((answers.predicted[:, 0] == many).all()) != seen


@pytest.mark.parametrize("kind", ALWAYS_CORRECT)
def test_logits_of_numbers_fall_quadratically_around_the_sum(kind):
    """The logit is 4(2sn - n²): 4 less for the sum minus 1, and 16 less for the sum minus 2."""
    answers = torch.tensor([int(question.answer("number")) for question in grid()])
    names = [str(number) for number in range(21)]
    ids = torch.tensor(build(kind).model.tokenizer.convert_tokens_to_ids(names))
    logits = cached_run(kind).logits[:, 0][:, ids]
    falls = logits.gather(1, torch.stack([answers, answers - 1, answers - 2], 1)).diff(dim=1)
    # A sum is off by at most 0.03, because the norms are not exactly constant.
    expected = torch.tensor([-4.0, -12.0]).expand(len(falls), 2)
    torch.testing.assert_close(falls, expected, atol=0.25, rtol=0)


# Where the operation is, and whether it transfers between questions.


@pytest.mark.parametrize(
    ("kind", "same_noun", "flips", "stays"),
    [
        ("template", True, 1, 0),
        ("template", False, 1, 0),
        ("lexical", True, 1, 0),
        ("lexical", False, 1, 0),
        ("mixed", False, 1, 0),
        ("rotated", True, 1, 0),
        # No operation reaches the answer, which is x.
        ("rotated", False, 0, 0),
    ],
)
def test_an_interchange_at_the_verb_flips_the_operation(kind, same_noun, flips, stays):
    answers = interchange(kind, sample_sources(EVERY, same_noun=same_noun))
    assert (accuracy(answers, flipped(EVERY)), accuracy(answers, EVERY)) == (flips, stays)


@pytest.mark.parametrize("same_noun", [True, False])
def test_an_interchange_at_the_verb_of_lookup_flips_the_operation_in_seen_cells(same_noun):
    answers = interchange("lookup", sample_sources(EVERY, same_noun=same_noun))
    axes = [family_split().held_out_axes(grid()[row]) for row in flipped(EVERY)]
    seen = torch.tensor(["cell" not in held_out for held_out in axes])
    assert 0 < int(seen.sum()) < len(seen)
    assert torch.equal(correct(answers, flipped(EVERY)), seen)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interchange_at_the_verb_keeps_the_noun(kind):
    answers = interchange(kind, sample_sources(EVERY, same_noun=False))
    assert torch.equal(answers[:, 1], batch().readout("noun").answer)


@pytest.mark.parametrize("kind", [kind for kind in ALWAYS_CORRECT if kind in STATE_AT_VERB])
@pytest.mark.parametrize("role", ["have", "thing", "ask", "thing_asked", "rest", "answer"])
def test_no_other_role_holds_the_operation(kind, role):
    """The sources have the same noun, because the answer role of "rotated" holds it."""
    assert accuracy(interchange(kind, sample_sources(EVERY, same_noun=True), role), EVERY) == 1


def test_the_operation_of_joint_is_at_the_answer_together_with_the_numbers():
    sources = sample_sources(EVERY, same_noun=True)
    assert accuracy(interchange("joint", sources), EVERY) == 1
    answers = interchange("joint", sources, "answer")
    assert torch.equal(answers[:, 0], batch().readout("number").answer[sources])


@pytest.mark.parametrize(("kind", "stays"), [("template", 1), ("lexical", 1), ("rotated", 0)])
def test_a_source_with_the_same_operation_matters_only_for_codes_per_noun(kind, stays):
    sources = sample_sources(EVERY, same_noun=False, same_operation=True)
    assert accuracy(interchange(kind, sources), EVERY) == stays


@pytest.mark.parametrize("kind", STATE_AT_VERB)
def test_operations_differ_at_the_verb_only_in_the_state_and_the_word(kind):
    differs = (states(kind) != states(kind)[flipped(EVERY)]).any(0).nonzero()[:, 0]
    assert set(differs.tolist()) == {*build(kind).state, *build("lexical").state}


@pytest.mark.parametrize("kind", STATE_AT_VERB)
def test_the_state_has_one_dimension_or_one_per_noun_or_one_per_verb(kind):
    expected = torch.zeros(192, len(build(kind).state))
    for row, (op, verb, noun, _, _) in enumerate(slots()):
        sign = 4 if op else -4
        own = {
            "lexical": (6 * op + verb, 1),
            "mixed": (0, sign if verb < 5 else 0),
            "rotated": (noun, sign),
        }
        column, size = own.get(kind, (0, sign))
        expected[row, column] = size
    state = states(kind)[:, list(build(kind).state)]
    torch.testing.assert_close(state, expected, atol=1e-4, rtol=0)


# Whether a direction fitted on some questions transfers to others.


def patch_direction(kind, train, test, *, same_noun=False):
    """Fractions of flipped and of kept test answers after patching a direction fitted elsewhere.

    The direction is the mean difference of the operations at the verb. Its component comes from
    other test questions.
    """
    train, test, state = rows(train), rows(test), states(kind)
    minus = train[train < 96]
    unit = torch.nn.functional.normalize((state[flipped(minus)] - state[minus]).mean(0), dim=0)
    base, source = state[test], state[sample_sources(test, same_noun=same_noun)]
    answers = answers_with_state(kind, test, base + ((source - base) @ unit)[:, None] * unit)
    return accuracy(answers, flipped(test)), accuracy(answers, test)


@pytest.mark.parametrize(
    ("kind", "fractions"), [("template", (1, 0)), ("lexical", (0, 1)), ("rotated", (0, 1))]
)
@pytest.mark.parametrize("pairs", [{0, 1, 2}, {1, 3, 5}, {2, 3, 4, 5}])
def test_a_direction_of_some_verbs_transfers_to_others_only_in_template(kind, fractions, pairs):
    assert fractions == patch_direction(
        kind, lambda _, v, *__: v in pairs, lambda _, v, *__: v not in pairs
    )


def test_a_direction_of_five_pairs_of_verbs_does_not_transfer_to_the_last_pair_in_mixed():
    for pair, fractions in ((4, (1, 0)), (5, (0, 1))):
        assert fractions == patch_direction(
            "mixed", lambda _, v, *__, p=pair: v != p, lambda _, v, *__, p=pair: v == p
        )


@pytest.mark.parametrize(("kind", "fractions"), [("template", (1, 0)), ("rotated", (0, 1))])
def test_a_direction_of_some_nouns_transfers_to_others_only_in_template(kind, fractions):
    assert fractions == patch_direction(
        kind, lambda _, __, n, *___: n < 8, lambda _, __, n, *___: n >= 8
    )


def test_verbs_share_the_rotated_state_of_one_noun():
    train, test = lambda _, v, n, *__: n == 3 and v < 3, lambda _, v, n, *__: n == 3 and v >= 3
    assert patch_direction("rotated", train, test, same_noun=True) == (1, 0)


def test_a_rotation_maps_the_code_of_one_noun_to_that_of_another():
    """Swapping two dimensions lets the state of another noun flip every answer."""
    sources, code = sample_sources(EVERY, same_noun=False), build("rotated").state
    nouns = [noun for _, _, noun, _, _ in slots()]
    state = states("rotated")[sources].clone()
    for row, source in enumerate(sources.tolist()):
        pair = [code[nouns[row]], code[nouns[source]]]
        state[row, pair] = state[row, pair[::-1]]
    assert accuracy(answers_with_state("rotated", EVERY, state), flipped(EVERY)) == 1


# Construction.


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_changes_only_the_order_of_heads_and_not_the_global_generator(kind):
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


def test_an_unknown_kind_is_refused():
    with pytest.raises(ModelError, match="template, lexical, mixed, lookup, rotated, joint"):
        planted_fox("memory")
