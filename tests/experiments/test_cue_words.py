"""Cue words: models in which the cue has no effect or decides the answer; power of 30 items."""

from dataclasses import dataclass, replace
from itertools import product
from math import comb, inf, log2

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest

import probes
from probes.errors import BatchError, OutcomeError, TokenizerError
from probes.experiments.cue_words.budget_forcing import (
    BudgetForcingSettings,
    _GreedyDecoder,
    _stop_tokens,
    budget_forcing,
    last_number,
)
from probes.experiments.cue_words.divergence import (
    DivergenceSettings,
    jensen_shannon,
    localize_cue,
    next_token_divergence,
)
from probes.experiments.cue_words.forcing_result import RANDOM, BudgetForcing
from probes.experiments.cue_words.texts import (
    CueItem,
    sample_random_words,
    to_cue_items,
    tokenize_cues,
)
from probes.models.model import Model, wrap
from probes.prompts.tokens.batch import left_pad
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
TWO_WORDS = DivergenceSettings(random_words=2)
WRONG = BudgetForcingSettings(times=(0, 1), given_answer="wrong", max_tokens=4)


def questions(count=6):
    return probes.pattern("take-away").sample_questions(count, seed=1)


def cue_prompt(text, cue, given_answer="right"):
    (item,) = to_cue_items([text])
    return f"{item.stem(given_answer)} {cue},"


def small(tokenizer, kind="llama", *, attends=True):
    """A random model with the tokenizer of the shipped models."""
    hf_model = tiny_hf(kind, 3, vocab_size=len(tokenizer), max_position_embeddings=128)
    if not attends:
        for layer in hf_model.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return wrap(hf_model, name=f"small {kind}", tokenizer=tokenizer)


# Power.


def test_one_item_of_thirty_is_no_evidence_in_any_pairing():
    """s1 reports 50.0 % and 53.3 % of 30 items: 15 and 16."""
    assert accuracy_step(30) == pytest.approx(100 * (16 - 15) / 30)
    tables = list(possible_tables(15, 16, 30))
    assert len(tables) == 15
    for one in tables:
        assert one.gained - one.lost == 1
        assert one.p_value == 1.0
        assert one.difference.value == pytest.approx(1 / 30)
        assert one.difference.low < 0 < one.difference.high
        assert one.verdict() == "cannot tell"
        assert one.minimum_detectable_effect() >= 0.25


def test_thirty_items_show_25_points_at_best_and_36_if_answers_are_independent():
    best = minimum_detectable_effect(30, 0.5, discordance=0.0)
    # All changes in one direction: at least 6, as 2 / 2**6 < 0.05 < 2 / 2**5.
    assert binom.sf(5, 30, best) == pytest.approx(0.8, abs=1e-3)
    assert best == pytest.approx(0.2507, abs=1e-4)
    assert minimum_detectable_effect(30, 0.5) == pytest.approx(0.3623, abs=1e-4)


@pytest.mark.parametrize("discordance", [0.0, None])
def test_items_needed_to_detect_a_difference_of_one_item(discordance):
    items = items_needed(1 / 30, 0.5, discordance=discordance)
    assert items == {0.0: 236, None: 3588}[discordance]
    assert minimum_detectable_effect(items, 0.5, discordance=discordance) <= 1 / 30 + 1e-5
    assert minimum_detectable_effect(items - 1, 0.5, discordance=discordance) > 1 / 30


def test_power_is_the_sum_over_all_outcomes():
    gain, loss, items, power = 0.6, 0.1, 9, 0.0
    for up, down in product(range(items + 1), repeat=2):
        if up + down > items or up <= down:
            continue
        if binomtest(up, up + down).pvalue <= 0.05:
            ways = comb(items, up) * comb(items - up, down)
            power += ways * gain**up * loss**down * (1 - gain - loss) ** (items - up - down)
    assert mcnemar_power(items, gain, loss) == pytest.approx(power, rel=1e-9)
    assert 0.2 < power < 0.7


def test_four_items_show_nothing():
    assert minimum_detectable_effect(4, 0.5) == inf


def test_a_large_set_agrees_with_the_normal_approximation():
    """Independent answers at a half: a variance of a half for each item."""
    approximate = (1.959964 + 0.841621) * (0.5 / 100_000) ** 0.5
    assert minimum_detectable_effect(100_000, 0.5) == pytest.approx(approximate, rel=0.02)


def test_six_changes_in_one_direction_are_significant_and_five_are_not():
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


def test_the_interval_changes_sign_when_the_arms_are_swapped():
    rng = np.random.default_rng(0)
    one, other = rng.random((2, 40)) < 0.6
    first, second = mcnemar_test(one, other).difference, mcnemar_test(other, one).difference
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low))


def test_two_hundred_equal_answers_are_alike_within_five_points_but_not_within_one():
    found = mcnemar_test(np.ones(200, dtype=bool), np.ones(200, dtype=bool))
    assert found.difference.low < -0.01 and found.difference.high > 0.01
    assert (found.p_value, found.verdict()) == (1.0, "cannot tell")
    assert found.verdict(margin=0.05) == "alike"
    assert found.verdict(margin=0.01) == "cannot tell"


def test_the_interval_has_its_stated_coverage():
    rng, inside = np.random.default_rng(1), 0
    for both, gained, lost, neither in rng.multinomial(40, (0.5, 0.2, 0.1, 0.2), size=400):
        first = np.repeat([True, False, True, False], (both, gained, lost, neither))
        second = np.repeat([True, True, False, False], (both, gained, lost, neither))
        found = mcnemar_test(first, second).difference
        inside += found.low <= 0.1 <= found.high
    assert 0.92 <= inside / 400 <= 0.985


def test_a_ratio_of_means_is_exact_if_it_is_the_same_for_all_items():
    values = np.arange(1.0, 9.0)
    ratio = bootstrap_ratio(3 * values, values, seed=0)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3, 3, 3))


@pytest.mark.parametrize(
    "call",
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
def test_impossible_numbers_are_refused(call):
    with pytest.raises(OutcomeError):
        call()


# Texts.


def test_a_cue_follows_a_right_or_a_wrong_answer():
    question = questions()[0]
    right = cue_prompt(question, "Wait")
    assert right == f"{question.full_text}. Wait,"
    wrong = cue_prompt(question, "Wait", "wrong")
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


def test_joined_parts_are_the_tokens_of_the_text(own):
    items = to_cue_items(questions())
    parts = tokenize_cues(own, items, [item.stem("right") for item in items], CUES)
    for cue, word in zip(CUES, parts.words, strict=True):
        texts = [cue_prompt(item, cue) for item in items]
        assert parts.rows([word] * len(items)) == own(texts)["input_ids"]


def test_a_random_word_has_the_form_of_the_cue_and_is_no_cue(own):
    items = to_cue_items(questions())
    words = tokenize_cues(own, items, [item.stem("right") for item in items], CUES).words
    sampled = sample_random_words(own, words, 60, seed=0)
    names = [own.convert_ids_to_tokens(list(word)) for word in sampled]
    assert all(name[0][0] == "Ġ" and name[0][1:].istitle() for name in names)
    assert not set(sampled) & set(words)
    assert len(set(sampled)) > 10
    assert sample_random_words(own, words, 60, seed=0) == sampled


def test_the_last_number_is_read():
    text = " 0 foxes. Wait, 3 less 3 is 0."
    assert last_number(text) == "0"
    assert last_number("5-3 is 1,024.5.") == "1024.5"
    assert last_number("none") is None


# Next tokens.


def test_the_divergence_equals_sums_by_hand():
    certain, other = np.array([[50.0, -50.0]]), np.array([[-50.0, 50.0]])
    uniform = np.zeros((1, 2))
    assert jensen_shannon(certain, certain)[0] == 0
    assert jensen_shannon(certain, other)[0] == pytest.approx(1)
    # m = (3/4, 1/4): half of log2(4/3), and half of the mean of log2(2/3) and log2(2).
    by_hand = log2(4 / 3) / 2 + (log2(2 / 3) + log2(2)) / 4
    assert jensen_shannon(certain, uniform)[0] == pytest.approx(by_hand)


def test_cues_have_no_effect_on_a_model_that_cannot_attend(own):
    model = small(own, attends=False)
    found = next_token_divergence(model, questions(), CUES, TWO_WORDS)
    assert (
        not found.bits.any() and not found.cue_vs_random.any() and not found.random_vs_random.any()
    )
    assert found.same_argmax.all()
    assert found.summary()[1].count("cannot tell") == 1
    with pytest.raises(OutcomeError, match="nothing to localize"):
        localize_cue(model, questions(), ("Wait", "Hmm"))


def test_divergence_is_that_of_the_models_own_logits(own):
    model, asked = small(own), questions(3)
    settings = DivergenceSettings(given_answer="wrong", random_words=2)
    found = next_token_divergence(model, asked, ("Wait", "Hmm"), settings)
    for k, question in enumerate(asked):
        ends = []
        for cue in ("Wait", "Hmm"):
            text = cue_prompt(question, cue, "wrong")
            ids = torch.tensor([own(text)["input_ids"]])
            ends.append(model.logits(ids, torch.ones_like(ids).bool())[:, -1].numpy())
        assert found.bits[0, k] == pytest.approx(jensen_shannon(*ends)[0], rel=1e-3)
    assert found.bits.min() > 0
    table = found.table()
    assert table.loc[0, "excess"] == pytest.approx(table.loc[0, "bits"] - table.loc[0, "random"])


def test_one_cue_or_equal_cues_are_refused(own):
    with pytest.raises(OutcomeError, match="at least two"):
        next_token_divergence(small(own), questions(), ("Wait",))
    with pytest.raises(OutcomeError, match="different words"):
        next_token_divergence(small(own), questions(), ("Wait", "Wait"))


# Localization.


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_cue_carries_all_at_the_input_and_the_readout_all_at_the_output(own, kind):
    model = small(own, kind)
    found = localize_cue(model, questions(), ("Wait", "Hmm"))
    assert found.positions == ("cue", "after", "all")
    top = model.shape.layers
    expected = {(0, "cue"): 1, (0, "after"): 0, (top, "cue"): 0, (top, "after"): 1}
    expected |= {(layer, "all"): 1 for layer in range(top + 1)}
    for (layer, position), value in expected.items():
        fraction = found.recovered_fraction(layer, position)
        ends = (fraction.value, fraction.low, fraction.high)
        assert ends == pytest.approx((value,) * 3, abs=1e-3)
    middle = found.recovered_fraction(1, "cue").value
    assert abs(middle) > 1e-3 and abs(middle - 1) > 1e-3
    assert len(found.table()) == (top + 1) * 3


def test_with_a_continuation_the_last_token_is_a_position_of_its_own(own):
    items = [
        CueItem(q.text, (), f"{q.answer('number')} {q.answer('noun')}", continuation="3 less 3 is")
        for q in questions()
    ]
    found = localize_cue(small(own), items, ("Wait", "So"))
    assert found.positions == ("cue", "after", "last", "all")
    at_top = {name: found.recovered_fraction(3, name).value for name in found.positions}
    assert at_top == pytest.approx({"cue": 0, "after": 0, "last": 1, "all": 1}, abs=1e-3)


# Budget forcing.


@dataclass(frozen=True, eq=False)
class Scripted(Model):
    """Writes 3 after Wait and 7 after Hmm and ":", with a full stop; else it never stops."""

    @property
    def device(self):
        return torch.device("cpu")

    def logits(self, ids, mask, at=None):
        token = self.tokenizer.convert_tokens_to_ids
        next_tokens = []
        for row in ids.tolist():
            *_, before, last = row
            after = {token("ĠWait"): "Ġ3", token("ĠHmm"): "Ġ7"}
            if last == token(","):
                next_tokens.append(token(after.get(before, "ĠI")))
            elif last == token(":"):
                next_tokens.append(token("Ġ7"))
            else:
                next_tokens.append(token("." if last in (token("Ġ3"), token("Ġ7")) else "ĠI"))
        predicted = torch.tensor(next_tokens)[:, None].expand_as(ids if at is None else at)
        return torch.nn.functional.one_hot(predicted, len(self.tokenizer)).float()


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


def test_a_model_is_made_to_continue_and_its_last_answer_is_read(script):
    found = budget_forcing(script, twelve(), ("Wait", "Hmm"), replace(WRONG, times=(2, 0, 1)))
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


def test_a_truncated_continuation_gets_a_full_stop_before_the_next_cue(script):
    settings = replace(WRONG, times=(2,), max_tokens=2)
    found = budget_forcing(script, twelve(), ("Wait", "Hmm"), settings)
    _, first, second = found.texts[2][0].split(", ")
    assert found.cues[2] == RANDOM
    assert first.startswith("I I. ") and second == "I I"
    word = first.removeprefix("I I. ")
    assert word not in ("Wait", "Hmm") and found.texts[2][0].startswith(f" 5. {word}, ")


def test_the_own_answer_is_what_the_model_writes(script):
    settings = replace(WRONG, given_answer="own")
    found = budget_forcing(script, twelve(), ("Wait", "Hmm"), settings)
    assert found.texts[1][0] == " 7. Hmm, 7."
    assert found.accuracy("Hmm", 0).value == pytest.approx(4 / 12)


def test_comparisons_are_matched_by_length_if_possible(script):
    found = budget_forcing(script, twelve(), ("Wait", "Hmm"), WRONG)
    contrasts = {(one.first, one.second): one for one in found.contrasts()}
    cues = contrasts["Wait n=1", "Hmm n=1"]
    assert cues.matched == cues.comparison
    assert contrasts["Wait n=1", f"{RANDOM} n=1"].matched is None
    assert len(contrasts) == 3 + 3
    table = found.comparisons()
    assert list(table["p_holm"] >= table["p"]) == [True] * 6
    lines = found.summary()
    # 8 of 8 changes: 2 / 2**8, three times over for three comparisons.
    assert f"p {3 * 2 / 2**8:.2g} (Holm): Wait n=1 is correct more often" in lines[4]
    assert "cannot tell: 12 items likely show" in lines[7]


def result(correct):
    """Two cues, once each, by the correct answers."""
    correct = np.array(correct)[:, None]
    zero = np.zeros(correct.shape, dtype=np.int64)
    return BudgetForcing("m", ("a", "b"), (1,), "own", correct, zero, zero.astype(bool), ((), ()))


def test_arms_are_alike_only_within_a_given_margin():
    found = result([[True] * 400] * 2)
    assert "cannot tell: 400 items likely show" in found.summary()[-1]
    assert found.summary(margin=0.05)[-1].endswith("alike within 5 points")


def test_decoding_in_a_padded_batch_equals_decoding_alone(own):
    model = small(own)
    decoder = _GreedyDecoder(model, 5, *_stop_tokens(model))
    rows = [own(q.text)["input_ids"] for q in questions(4)]
    together, cut = decoder.generate(rows)
    for row, grown, left in zip(rows, together, cut, strict=True):
        alone = list(row)
        for _ in range(5):
            ids, mask = left_pad(own, [alone], model.device)
            token = int(model.logits(ids, mask)[0, -1].argmax())
            alone += [token] * (token not in decoder.end_tokens)
            if token in decoder.end_tokens | decoder.full_stops:
                break
        assert grown == alone
        assert left == (len(grown) == len(row) + 5 and grown[-1] not in decoder.full_stops)


def test_impossible_forcing_is_refused(script):
    with pytest.raises(BatchError, match="shorten"):
        settings = BudgetForcingSettings(times=(9,), max_tokens=20)
        budget_forcing(script, twelve(), ("Wait", "Hmm"), settings)
    with pytest.raises(OutcomeError, match="no right answer"):
        budget_forcing(script, ["It ran."], ("Wait", "Hmm"))
    with pytest.raises(OutcomeError, match="has no wrong answer"):
        budget_forcing(script, [CueItem("It ran.", ("3",))], ("Wait", "Hmm"), WRONG)
    with pytest.raises(OutcomeError, match="times"):
        BudgetForcingSettings(times=(0,))
    with pytest.raises(TokenizerError, match="without a tokenizer"):
        budget_forcing(tiny("llama"), twelve(), ("Wait", "Hmm"))
    with pytest.raises(OutcomeError, match="was not tried"):
        result([[True], [True]]).accuracy("c", 1)


def test_another_model_continues_texts_of_the_user(shared_data):
    model = probes.load(shared_data("stories260K"))
    texts = ["Once upon a time there was a dog", "Tom had a red ball"]
    divergence = next_token_divergence(model, texts, ("One", "They"), TWO_WORDS)
    assert divergence.bits.shape == (1, 2) and divergence.bits.min() > 0
    items = [CueItem(text, ("ball",)) for text in texts]
    settings = BudgetForcingSettings(
        times=(0, 1), parse_answer=lambda text: "ball" if "ball" in text else None, max_tokens=6
    )
    found = budget_forcing(model, items, ("One", "They"), settings)
    assert found.correct.shape == (3, 2, 2)
    assert all(", " in text for text in found.texts[0])


# Pages.


def test_every_result_has_a_page_with_its_summary(script, own, tmp_path):
    model, asked = small(own), questions()
    results = (
        next_token_divergence(model, asked, CUES, TWO_WORDS),
        localize_cue(model, asked, ("Wait", "Hmm")),
        budget_forcing(script, twelve(), ("Wait", "Hmm"), WRONG),
    )
    for one in results:
        body = one.picture().body
        assert one.summary()[0].split(" [")[0].split(",")[0] in body
        one.save(tmp_path / "result.json")
    assert "+66.7" in body and "cannot tell" in body


def test_a_page_escapes_the_names_in_it():
    body = replace(result([[True]] * 2), model="<b>", cues=("<i>", "b")).picture().body
    assert "<b>" not in body and "<i>" not in body
