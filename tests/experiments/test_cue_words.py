"""Cue words: planted models in which the cue does nothing, or all; and what 30 items can show."""

from dataclasses import dataclass
from itertools import product
from math import comb, inf, log2

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest

import probes
from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.experiments.cue_words.budget_forcing import (
    _GreedyWriter,
    _stop_tokens,
    budget_forcing,
    last_number,
)
from probes.experiments.cue_words.divergence import (
    jensen_shannon,
    localize_cue,
    next_token_divergence,
)
from probes.experiments.cue_words.report import cue_words_page, cue_words_section
from probes.experiments.cue_words.results import RANDOM, BudgetForcing
from probes.experiments.cue_words.texts import (
    CueItem,
    cue_prompt,
    left_pad,
    sample_random_words,
    to_cue_items,
    tokenize_cues,
)
from probes.models.model import Model, wrap
from probes.stats.intervals import bootstrap_ratio
from probes.stats.paired import mcnemar_test, possible_tables
from probes.stats.power import (
    accuracy_step,
    items_needed,
    mcnemar_power,
    minimum_detectable_effect,
)
from probes.testing.tiny_models import tiny, tiny_hf

CUES = ("Wait", "Hmm", "So")


def questions(count=6):
    return probes.pattern("take-away").sample_questions(count, seed=1)


def small(tokenizer, kind="llama", *, deaf=False):
    """A random model of the family's words; deaf, it attends to nothing but the last token."""
    hf_model = tiny_hf(kind, 3, vocab_size=len(tokenizer), max_position_embeddings=128)
    if deaf:
        for layer in hf_model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return wrap(hf_model, name=f"small {kind}", tokenizer=tokenizer)


# What so many items can show.


def test_one_item_of_thirty_is_no_evidence_however_the_answers_pair_up():
    """s1 reports 50.0 % and 53.3 % of 30 items: 15 and 16."""
    assert accuracy_step(30) == pytest.approx(100 * (16 - 15) / 30)
    found = list(possible_tables(15, 16, 30))
    assert len(found) == 15
    for one in found:
        assert one.gained - one.lost == 1
        assert one.p_value == 1.0
        assert one.difference.value == pytest.approx(1 / 30)
        assert one.difference.low < 0 < one.difference.high
        assert one.verdict() == "cannot tell"
        assert one.minimum_detectable_effect() >= 0.25


def test_thirty_items_show_25_points_at_best_and_36_if_answers_are_unrelated():
    best = minimum_detectable_effect(30, 0.5, discordance=0.0)
    # All changes in one direction: at least 6, as 2 / 2**6 < 0.05 < 2 / 2**5.
    assert binom.sf(5, 30, best) == pytest.approx(0.8, abs=1e-3)
    assert best == pytest.approx(0.2507, abs=1e-4)
    assert minimum_detectable_effect(30, 0.5) == pytest.approx(0.3623, abs=1e-4)


@pytest.mark.parametrize("discordance", [0.0, None])
def test_what_a_difference_of_one_item_would_take(discordance):
    items = items_needed(1 / 30, 0.5, discordance=discordance)
    assert items == {0.0: 236, None: 3588}[discordance]
    assert minimum_detectable_effect(items, 0.5, discordance=discordance) <= 1 / 30 + 1e-5
    assert minimum_detectable_effect(items - 1, 0.5, discordance=discordance) > 1 / 30


def test_the_chance_to_see_is_that_of_every_outcome_counted_out():
    gain, loss, items, chance = 0.6, 0.1, 9, 0.0
    for up, down in product(range(items + 1), repeat=2):
        if up + down > items or up <= down:
            continue
        if binomtest(up, up + down).pvalue <= 0.05:
            ways = comb(items, up) * comb(items - up, down)
            chance += ways * gain**up * loss**down * (1 - gain - loss) ** (items - up - down)
    assert mcnemar_power(items, gain, loss) == pytest.approx(chance, rel=1e-9)
    assert 0.2 < chance < 0.7


def test_four_items_show_nothing():
    assert minimum_detectable_effect(4, 0.5) == inf


def test_a_large_set_is_worked_out_as_a_normal_approximation_has_it():
    """Independent answers at a half: a variance of a half for each item."""
    rough = (1.959964 + 0.841621) * (0.5 / 100_000) ** 0.5
    assert minimum_detectable_effect(100_000, 0.5) == pytest.approx(rough, rel=0.02)


def test_six_changes_one_way_are_seen_and_five_are_not():
    base = np.zeros(20, dtype=bool)
    six, five = base.copy(), base.copy()
    six[:6], five[:5] = True, True
    assert mcnemar_test(base, six).p_value == pytest.approx(2 / 2**6)
    assert mcnemar_test(base, five).p_value == pytest.approx(2 / 2**5)
    assert (mcnemar_test(base, six).verdict(), mcnemar_test(six, base).verdict()) == (
        "more",
        "less",
    )
    assert mcnemar_test(base, five).verdict() == "cannot tell"
    assert mcnemar_test(base, six).verdict(p_value=0.2) == "cannot tell"


def test_the_interval_turns_about_when_the_two_are_swapped():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 40)) < 0.6
    there, back = mcnemar_test(one, other).difference, mcnemar_test(other, one).difference
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_two_hundred_equal_answers_are_alike_to_within_a_margin_but_not_to_a_point():
    found = mcnemar_test(np.ones(200, dtype=bool), np.ones(200, dtype=bool))
    assert found.difference.low < -0.01 and found.difference.high > 0.01
    assert (found.p_value, found.verdict()) == (1.0, "cannot tell")
    assert found.verdict(margin=0.05) == "alike"
    assert found.verdict(margin=0.01) == "cannot tell"


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for both, gained, lost, neither in rng.multinomial(40, (0.5, 0.2, 0.1, 0.2), size=400):
        first = np.repeat([True, False, True, False], (both, gained, lost, neither))
        second = np.repeat([True, True, False, False], (both, gained, lost, neither))
        found = mcnemar_test(first, second).difference
        inside += found.low <= 0.1 <= found.high
    assert 0.92 <= inside / 400 <= 0.985


def test_a_ratio_of_means_is_exact_where_each_item_has_the_same():
    below = np.arange(1.0, 9.0)
    found = bootstrap_ratio(3 * below, below, seed=0)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: accuracy_step(0),
        lambda: minimum_detectable_effect(0, 0.5),
        lambda: minimum_detectable_effect(30, 1.5),
        lambda: items_needed(0.0, 0.5),
        lambda: items_needed(0.6, 0.5),
        lambda: list(possible_tables(31, 3, 30)),
        lambda: mcnemar_test(np.ones(0, dtype=bool), np.ones(0, dtype=bool)),
    ],
)
def test_numbers_that_cannot_be_are_refused(ask):
    with pytest.raises(OutcomeError):
        ask()


# Texts.


def test_a_cue_stands_behind_the_right_answer_or_a_wrong_one():
    question = questions()[0]
    right = cue_prompt(question, "Wait")
    assert right == f"{question.full_text}. Wait,"
    wrong = cue_prompt(question, "Wait", given_answer="wrong")
    assert wrong != right and wrong.startswith(question.text)
    assert wrong.split()[-2] == right.split()[-2] == f"{question.answer('noun')}."
    assert cue_prompt("It ran.", "But") == "It ran. But,"


def test_a_wrong_answer_is_never_the_right_one():
    for item in to_cue_items(questions(40)):
        (number,) = item.answers
        assert last_number(item.right) == number
        assert last_number(item.wrong) not in (None, number)


def test_cues_of_unequal_length_are_refused_with_their_counts(own):
    items = to_cue_items(questions())
    with pytest.raises(TokenizerError, match=r"'Wait' 1, 'Okay' \d.*words of one length"):
        tokenize_cues(own, items, [item.stem("right") for item in items], ("Wait", "Okay"))


def test_the_pieces_put_together_are_the_tokens_of_the_text(own):
    items = to_cue_items(questions())
    parts = tokenize_cues(own, items, [item.stem("right") for item in items], CUES)
    for cue, word in zip(CUES, parts.words, strict=True):
        texts = [cue_prompt(item, cue) for item in items]
        wanted = own(texts)["input_ids"]
        assert parts.rows([word] * len(items)) == wanted


def test_a_random_word_has_the_make_of_the_cue_and_is_none_of_them(own):
    items = to_cue_items(questions())
    words = tokenize_cues(own, items, [item.stem("right") for item in items], CUES).words
    drawn = sample_random_words(own, words, 60, seed=0)
    names = [own.convert_ids_to_tokens(list(word)) for word in drawn]
    assert all(name[0][0] == "Ġ" and name[0][1:].istitle() for name in names)
    assert not set(drawn) & set(words)
    assert len(set(drawn)) > 10
    assert sample_random_words(own, words, 60, seed=0) == drawn


def test_the_last_number_is_read():
    said = " 0 foxes. Wait, 3 less 3 is 0."
    assert last_number(said) == "0"
    assert last_number("5-3 is 1,024.5.") == "1024.5"
    assert last_number("none") is None


# Next tokens.


def test_the_divergence_of_distributions_known_by_hand():
    sure, other = np.array([[50.0, -50.0]]), np.array([[-50.0, 50.0]])
    even = np.zeros((1, 2))
    assert jensen_shannon(sure, sure)[0] == 0
    assert jensen_shannon(sure, other)[0] == pytest.approx(1)
    # m = (3/4, 1/4): half of log2(4/3), and half of the mean of log2(2/3) and log2(2).
    by_hand = log2(4 / 3) / 2 + (log2(2 / 3) + log2(2)) / 4
    assert jensen_shannon(sure, even)[0] == pytest.approx(by_hand)


def test_cues_that_a_model_cannot_look_back_at_make_no_difference(own):
    model = small(own, deaf=True)
    found = next_token_divergence(model, questions(), CUES, random_words=2)
    assert (
        not found.bits.any() and not found.cue_vs_random.any() and not found.random_vs_random.any()
    )
    assert found.same_argmax.all()
    assert found.summary()[1].count("cannot tell") == 1
    with pytest.raises(OutcomeError, match="nothing to locate"):
        localize_cue(model, questions(), "Wait", "Hmm")


def test_divergence_is_that_of_the_models_own_logits(own):
    model, asked = small(own), questions(3)
    found = next_token_divergence(
        model, asked, ("Wait", "Hmm"), given_answer="wrong", random_words=2
    )
    for k, question in enumerate(asked):
        ends = []
        for cue in ("Wait", "Hmm"):
            text = cue_prompt(question, cue, given_answer="wrong")
            ids = torch.tensor([own(text)["input_ids"]])
            ends.append(model.logits(ids, torch.ones_like(ids).bool())[:, -1].numpy())
        assert found.bits[0, k] == pytest.approx(jensen_shannon(*ends)[0], rel=1e-3)
    assert found.bits.min() > 0
    table = found.table()
    assert table.loc[0, "excess"] == pytest.approx(table.loc[0, "bits"] - table.loc[0, "random"])


def test_one_cue_is_nothing_to_compare(own):
    with pytest.raises(OutcomeError, match="at least two"):
        next_token_divergence(small(own), questions(), ("Wait",))
    with pytest.raises(OutcomeError, match="different words"):
        next_token_divergence(small(own), questions(), ("Wait", "Wait"))


# Where it is carried.


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_cue_carries_all_at_first_and_what_is_read_all_at_last(own, kind):
    model = small(own, kind)
    found = localize_cue(model, questions(), "Wait", "Hmm")
    assert found.positions == ("cue", "after", "all")
    top = model.shape.layers
    wanted = {(0, "cue"): 1, (0, "after"): 0, (top, "cue"): 0, (top, "after"): 1}
    wanted |= {(layer, "all"): 1 for layer in range(top + 1)}
    for (layer, place), share in wanted.items():
        carried = found.recovered_fraction(layer, place)
        assert (carried.value, carried.low, carried.high) == pytest.approx((share,) * 3, abs=1e-3)
    middle = found.recovered_fraction(1, "cue").value
    assert abs(middle) > 1e-3 and abs(middle - 1) > 1e-3
    assert len(found.table()) == (top + 1) * 3


def test_further_on_the_last_token_is_a_place_of_its_own(own):
    items = [
        CueItem(q.text, (), f"{q.answer('number')} {q.answer('noun')}", continuation="3 less 3 is")
        for q in questions()
    ]
    found = localize_cue(small(own), items, "Wait", "So")
    assert found.positions == ("cue", "after", "last", "all")
    at_top = {place: found.recovered_fraction(3, place).value for place in found.positions}
    assert at_top == pytest.approx({"cue": 0, "after": 0, "last": 1, "all": 1}, abs=1e-3)


# Going on.


@dataclass(frozen=True, eq=False)
class Scripted(Model):
    """Writes 3 behind Wait and 7 behind Hmm and ":", with a full stop; else it never stops."""

    @property
    def device(self):
        return torch.device("cpu")

    def logits(self, ids, mask):
        token = self.tokenizer.convert_tokens_to_ids
        wanted = []
        for row in ids.tolist():
            *_, before, last = row
            behind = {token("ĠWait"): "Ġ3", token("ĠHmm"): "Ġ7"}
            if last == token(","):
                wanted.append(token(behind.get(before, "ĠI")))
            elif last == token(":"):
                wanted.append(token("Ġ7"))
            else:
                wanted.append(token("." if last in (token("Ġ3"), token("Ġ7")) else "ĠI"))
        return torch.nn.functional.one_hot(
            torch.tensor(wanted)[:, None].expand_as(ids), len(self.tokenizer)
        ).float()


@pytest.fixture(scope="module")
def script(own):
    like = small(own)
    return Scripted("a script", "a test", like.shape, own, None, like.config)


def twelve():
    """Eight items whose answer is 3, and four whose answer is 7."""
    names = ("Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Leo", "Zoe", "Max", "Ivy", "Jack", "Rose")
    return [
        CueItem(f"{name} has 3 hats. Answer:", ("3" if n < 8 else "7",), wrong="5")
        for n, name in enumerate(names)
    ]


def test_a_model_is_made_to_go_on_and_its_last_statement_is_read(script):
    found = budget_forcing(
        script, twelve(), ("Wait", "Hmm"), times=(2, 0, 1), given_answer="wrong", max_tokens=4
    )
    assert found.times == (0, 1, 2)
    assert found.texts[0][0] == " 5. Wait, 3. Wait, 3."
    accuracy = {(c, n): found.accuracy(c, n).value for c in ("Wait", "Hmm") for n in (0, 1, 2)}
    assert accuracy == pytest.approx(
        {("Wait", 0): 0, ("Wait", 1): 8 / 12, ("Wait", 2): 8 / 12}
        | {("Hmm", 0): 0, ("Hmm", 1): 4 / 12, ("Hmm", 2): 4 / 12}
    )
    assert found.tokens[:, :, 0].tolist() == [[0, 2, 4], [0, 2, 4], [0, 4, 8]]
    assert found.truncated[:, :, 0].tolist() == [[False] * 3, [False] * 3, [False, True, True]]
    between = found.compare(("Wait", 1), ("Hmm", 1))
    assert (between.gained, between.lost, between.both_correct) == (4, 8, 0)
    assert between.p_value == binomtest(4, 12).pvalue


def test_the_random_word_is_cut_off_and_gets_a_full_stop_before_it_comes_again(script):
    found = budget_forcing(
        script, twelve(), ("Wait", "Hmm"), times=(2,), given_answer="wrong", max_tokens=2
    )
    _, first, second = found.texts[2][0].split(", ")
    assert found.cues[2] == RANDOM
    assert first.startswith("I I. ") and second == "I I"
    word = first.removeprefix("I I. ")
    assert word not in ("Wait", "Hmm") and found.texts[2][0].startswith(f" 5. {word}, ")


def test_its_own_answer_is_what_it_writes_by_itself(script):
    found = budget_forcing(script, twelve(), ("Wait", "Hmm"), times=(0, 1), max_tokens=4)
    assert found.texts[1][0] == " 7. Hmm, 7."
    assert found.accuracy("Hmm", 0).value == pytest.approx(4 / 12)


def test_comparisons_are_matched_by_length_where_they_can_be(script):
    found = budget_forcing(
        script, twelve(), ("Wait", "Hmm"), times=(0, 1), given_answer="wrong", max_tokens=4
    )
    made = {(change.first, change.second): change for change in found.contrasts()}
    assert made["Wait n=1", "Hmm n=1"].matched == made["Wait n=1", "Hmm n=1"].comparison
    assert made["Wait n=1", f"{RANDOM} n=1"].matched is None
    assert len(made) == 3 + 3
    table = found.comparisons()
    assert list(table["p_holm"] >= table["p"]) == [True] * 6
    lines = found.summary()
    # 8 of 8 changes: 2 / 2**8, three times over for three comparisons.
    assert f"p {3 * 2 / 2**8:.2g} (Holm): Wait n=1 is right more often" in lines[4]
    assert "cannot tell: 12 items likely show" in lines[7]


def result(right):
    """Two cues once, by the answers to each item."""
    right = np.array(right)[:, None]
    nothing = np.zeros(right.shape, dtype=np.int64)
    return BudgetForcing(
        "m", ("a", "b"), (1,), "own", right, nothing, nothing.astype(bool), ((), ())
    )


def test_alike_is_said_only_within_a_margin_that_was_given():
    found = result([[True] * 400] * 2)
    assert "cannot tell: 400 items likely show" in found.summary()[-1]
    assert found.summary(margin=0.05)[-1].endswith("alike to within 5 points")


def test_writing_in_a_padded_batch_is_writing_alone(own):
    model = small(own)
    writer = _GreedyWriter(model, 5, *_stop_tokens(model))
    rows = [own(q.text)["input_ids"] for q in questions(4)]
    together, cut = writer.generate(rows)
    for row, grown, left in zip(rows, together, cut, strict=True):
        alone = list(row)
        for _ in range(5):
            ids, mask = left_pad(own, [alone], model.device)
            token = int(model.logits(ids, mask)[0, -1].argmax())
            alone += [token] * (token not in writer.end_tokens)
            if token in writer.end_tokens | writer.full_stops:
                break
        assert grown == alone
        assert left == (len(grown) == len(row) + 5 and grown[-1] not in writer.full_stops)


def test_what_cannot_be_forced_is_refused(script):
    with pytest.raises(BatchError, match="shorten"):
        budget_forcing(script, twelve(), ("Wait", "Hmm"), times=(9,), max_tokens=20)
    with pytest.raises(OutcomeError, match="no right answer"):
        budget_forcing(script, ["It ran."], ("Wait", "Hmm"))
    with pytest.raises(OutcomeError, match="No wrong answer"):
        budget_forcing(script, [CueItem("It ran.", ("3",))], ("Wait", "Hmm"), given_answer="wrong")
    with pytest.raises(OutcomeError, match="times"):
        budget_forcing(script, twelve(), ("Wait", "Hmm"), times=(0,))
    with pytest.raises(TokenizerError, match="without a tokenizer"):
        budget_forcing(tiny("llama"), twelve(), ("Wait", "Hmm"))
    with pytest.raises(OutcomeError, match="was not tried"):
        result([[True], [True]]).accuracy("c", 1)


def test_another_model_goes_on_with_texts_of_the_users_own(shared_tokenizer):
    shared_tokenizer("stories")  # skips where there is none
    from conftest import SHARED

    model = probes.load(SHARED / "stories260K")
    texts = ["Once upon a time there was a dog", "Tom had a red ball"]
    apart = next_token_divergence(model, texts, ("One", "They"), random_words=2)
    assert apart.bits.shape == (1, 2) and apart.bits.min() > 0
    items = [CueItem(text, ("ball",)) for text in texts]
    found = budget_forcing(
        model, items, ("One", "They"), times=(0, 1), max_tokens=6,
        parse_answer=lambda text: "ball" if "ball" in text else None,
    )  # fmt: skip
    assert found.correct.shape == (3, 2, 2)
    assert all(", " in text for text in found.texts[0])


# The page.


def test_the_page_holds_a_section_for_each_result_and_escapes_what_it_shows(script, own):
    model = small(own)
    found = (
        next_token_divergence(model, questions(), CUES, random_words=2),
        localize_cue(model, questions(), "Wait", "Hmm"),
        budget_forcing(
            script, twelve(), ("Wait", "Hmm"), times=(0, 1), given_answer="wrong", max_tokens=4
        ),
    )
    body = cue_words_page(*found).body
    for one in found:
        heading, lead, blocks = cue_words_section(one)
        assert heading in body and lead and blocks
        assert one.summary()[0].split(",")[0] in body
    assert "+66.7" in body and "cannot tell" in body
    assert body == cue_words_page(*found).body
    nasty = cue_words_page(
        BudgetForcing("<b>", ("<i>", "b"), (1,), *_rest(result([[True]] * 2)))
    ).body
    assert "<b>" not in nasty and "<i>" not in nasty


def _rest(found):
    return found.given_answer, found.correct, found.tokens, found.truncated, found.texts
