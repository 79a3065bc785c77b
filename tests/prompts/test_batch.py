"""A batch holds the right tokens in the right roles, whatever the tokenizer cuts."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from probes.errors import BatchError, OutcomeError, SiteError, TokenizerError
from probes.prompts.batch import tokenize
from probes.prompts.catalog import pattern
from probes.prompts.pair_batch import tokenizable_by
from probes.prompts.question import Question
from probes.prompts.tokenization import BOS, assign_roles

FOX = "If I have two foxes and I take away one, how many foxes do I have?"


def fox():
    return pattern("take-away").match(FOX)


def asked(text, *answers, roles=()):
    """A question of our own; of each answer's outcomes the first is right."""
    named = [(f"a{k}", outcomes) for k, outcomes in enumerate(answers)]
    return Question(
        text=text,
        pattern="ours",
        template="ours",
        slots=(),
        numerals="digits",
        answers=tuple((name, outcomes[0]) for name, outcomes in named),
        outcomes=tuple(named),
        roles=tuple((words, text.index(words), text.index(words) + len(words)) for words in roles),
    )


def drawn(tokenizer, name="take-away", count=8):
    return pattern(name).sample_questions(count, seed=3, keep=tokenizable_by(tokenizer))


def read(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def text_of(tokenizer, batch, row, role):
    """What the tokens of a role say; a tokenizer of letters puts spaces between them."""
    return "".join(read(tokenizer, batch.ids[row][batch.role_mask(role)[row]]).split())


# Roles, on every kind of tokenizer.


@pytest.mark.parametrize("name", ["take-away", "taken-told", "two-owners", "distractor"])
def test_the_tokens_of_a_role_say_its_words_and_no_more(tokenizer, name):
    questions = drawn(tokenizer, name)
    batch = tokenize(tokenizer, questions)
    for row, question in enumerate(questions):
        words = {role: question.role_text(role) for role, _, _ in question.roles}
        words |= {f"reply_{answer}": text for answer, text in question.answers}
        for role in batch.roles:
            if role in (BOS, "rest"):
                continue
            said = words.get(role, "").replace(" ", "")
            assert text_of(tokenizer, batch, row, role) == said
        assert set(words) <= set(batch.roles)


def test_every_token_has_exactly_one_role(tokenizer):
    batch = tokenize(tokenizer, drawn(tokenizer))
    claims = torch.stack([batch.role_mask(role) for role in batch.roles]).sum(0)
    assert torch.equal(claims, batch.mask.long())
    assert torch.equal(batch.role_of == -1, ~batch.mask)


def test_all_tokens_together_say_the_text_with_its_answers(tokenizer):
    questions = drawn(tokenizer)
    batch = tokenize(tokenizer, questions)
    for row, question in enumerate(questions):
        ids = batch.ids[row][batch.mask[row]][int(BOS in batch.roles) :]
        assert "".join(read(tokenizer, ids).split()) == question.full_text.replace(" ", "")
        assert len(batch.tokens[row]) == int(batch.mask[row].sum())


def test_there_is_a_start_token_where_the_tokenizer_has_one_and_only_there(tokenizer):
    batch = tokenize(tokenizer, drawn(tokenizer))
    assert (BOS in batch.roles) == (tokenizer.bos_token_id is not None)
    if BOS in batch.roles:
        first = batch.mask.int().argmax(1)
        assert torch.equal(batch.role_mask(BOS).int().argmax(1), first)
        assert batch.role_mask(BOS).sum(1).tolist() == [1] * len(batch)
        assert (batch.ids[batch.role_mask(BOS)] == tokenizer.bos_token_id).all()


def test_the_roles_of_the_fox_sentence_stand_in_its_order(own):
    batch = tokenize(own, (fox(),))
    assert batch.roles == (
        *("bos", "rest", "have", "x", "thing", "op", "y", "ask", "thing_asked", "answer"),
        *("reply_number", "reply_noun"),
    )
    assert batch.tokens[0][:9] == (
        *("<bos>", "If", " I", " have", " two", " foxes", " and", " I", " take"),
    )
    assert batch.roles[batch.role_of[0, 5]] == "thing"


def test_a_word_of_many_tokens_plays_its_role_with_all_of_them(own):
    question = pattern("take-away").match(FOX.replace("foxes", "watermelons"))
    batch = tokenize(own, (question,))
    for role in ("thing", "thing_asked", "reply_noun"):
        tokens = [
            t for t, there in zip(batch.tokens[0], batch.role_mask(role)[0], strict=True) if there
        ]
        assert tokens == [" water", "mel", "ons"]


def test_a_token_of_white_space_joins_the_role_behind_it():
    spans = (("who", 0, 2), ("what", 3, 5))
    assert assign_roles("ab cd .", [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)], spans) == (
        *("who", "what", "what", "rest", "rest"),
    )


def test_a_token_that_spans_two_roles_plays_the_one_it_overlaps_more():
    assert assign_roles("abcdef", [(0, 6)], (("few", 0, 2), ("many", 2, 6))) == ("many",)
    assert assign_roles(" ab", [(0, 3)], (("word", 1, 3),)) == ("word",)
    assert assign_roles("ab", [(0, 0), (0, 2)], ()) == ("rest", "rest")


def test_white_space_around_a_word_does_not_count_towards_its_role():
    spans = (("first", 0, 4), ("last", 4, 5))
    assert assign_roles("x   y", [(0, 1), (1, 5)], spans) == ("first", "last")
    spans = (("first", 0, 1), ("last", 1, 5))
    assert assign_roles("x   y", [(0, 4), (4, 5)], spans) == ("first", "last")


def test_a_role_or_an_answer_that_the_batch_lacks_is_refused(own):
    batch = tokenize(own, (fox(),))
    with pytest.raises(SiteError, match="'name' is not in this batch: it has bos, rest, have"):
        batch.role_mask("name")
    with pytest.raises(SiteError, match=r"'verb' is not read in .* it has \['number', 'noun'\]"):
        batch.readout("verb")


# Padding.


def test_padding_stands_on_the_left_and_changes_nothing_else(tokenizer):
    questions = drawn(tokenizer, count=12)
    batch = tokenize(tokenizer, questions)
    lengths = batch.mask.sum(1)
    assert len(set(lengths.tolist())) > 1
    assert int(lengths.max()) == batch.ids.shape[1]
    for row, question in enumerate(questions):
        alone = tokenize(tokenizer, (question,))
        shift = batch.ids.shape[1] - alone.ids.shape[1]
        assert batch.mask[row].tolist() == [False] * shift + [True] * alone.ids.shape[1]
        assert torch.equal(batch.ids[row, shift:], alone.ids[0])
        roles = [batch.roles[role] for role in batch.role_of[row, shift:]]
        assert roles == [alone.roles[role] for role in alone.role_of[0]]
        for here, there in zip(batch.readouts, alone.readouts, strict=True):
            assert int(here.position[row]) == int(there.position[0]) + shift
            assert int(here.end[row]) == int(there.end[0]) + shift
            assert here.answer[row] == there.answer[0]
            assert here.outcomes[row] == there.outcomes[0]


def test_a_tokenizer_with_no_token_to_pad_with_pads_all_the_same(letters):
    assert letters.pad_token_id is None
    batch = tokenize(letters, (asked("Hello, ab", ("c", "d")), asked("ab", ("c", "d"))))
    assert batch.mask.sum(1).tolist() == [11, 4]
    assert batch.mask[1].tolist() == [False] * 7 + [True] * 4


# Read-outs.


def test_each_answer_is_read_by_the_token_before_its_outcomes_differ(tokenizer):
    questions = drawn(tokenizer)
    batch = tokenize(tokenizer, questions)
    for row, question in enumerate(questions):
        for name, outcomes in question.outcomes:
            readout = batch.readout(name)
            start, end = int(readout.position[row]) + 1, int(readout.end[row])
            before = batch.ids[row][batch.mask[row]].tolist()
            before = before[: len(before) - (batch.ids.shape[1] - start)]
            assert len(readout.outcomes[row]) == len(set(readout.outcomes[row])) == len(outcomes)
            assert readout.answer[row] == readout.outcomes[row][0] == batch.ids[row, start]
            # Each outcome begins with what stands before the read-out and its own token.
            behind = question.text + ("" if name == "number" else f" {question.answer('number')}")
            for outcome, token in zip(outcomes, readout.outcomes[row], strict=True):
                ids = tokenizer(f"{behind} {outcome}", add_special_tokens=False)["input_ids"]
                ids = [tokenizer.bos_token_id] * (BOS in batch.roles) + ids
                assert ids[: len(before) + 1] == [*before, token]
            written = "".join(read(tokenizer, batch.ids[row, :end]).split())
            assert written.endswith((f"{behind} {question.answer(name)}").replace(" ", ""))


def test_a_space_that_all_outcomes_share_is_read_past(letters):
    batch = tokenize(letters, (asked("2+2=", ("4", "5")),))
    (readout,) = batch.readouts
    assert batch.tokens[0] == ("2", "+", "2", "=", " ", "4")
    assert (int(readout.position[0]), int(readout.end[0])) == (4, 6)
    assert letters.convert_ids_to_tokens(list(readout.outcomes[0])) == ["4", "5"]


def test_a_space_token_of_a_real_tokenizer_is_read_past(shared_tokenizer):
    batch = tokenize(shared_tokenizer("stories"), (fox(),))
    readout = batch.readout("number")
    at = int(readout.position[0])
    assert batch.tokens[0][at : at + 2] == (" ", "1")
    assert batch.tokens[0][at - 1] == ":"


def test_a_space_inside_the_number_token_leaves_the_readout_on_the_colon(own):
    batch = tokenize(own, (fox(),))
    at = int(batch.readout("number").position[0])
    assert batch.tokens[0][at : at + 2] == (":", " 1")


def test_an_answer_of_many_tokens_is_read_where_its_outcomes_first_differ(letters):
    batch = tokenize(letters, (asked("Say", ("foxes", "fobs", "fog"), ("now", "not")),))
    first, second = batch.readouts
    assert "".join(batch.tokens[0]) == "Say foxes now"
    assert int(first.position[0]) == 5  # the o of foxes
    assert letters.convert_ids_to_tokens(list(first.outcomes[0])) == ["x", "b", "g"]
    assert int(first.end[0]) == 9
    assert int(second.position[0]) == 11  # the o of now
    assert letters.convert_ids_to_tokens(list(second.outcomes[0])) == ["w", "t"]
    assert int(second.end[0]) == 13


def test_an_answer_without_a_rival_is_read_at_its_first_token(letters, own):
    (readout,) = tokenize(letters, (asked("Say", ("foxes",)),)).readouts
    assert int(readout.position[0]) == 2
    assert letters.convert_ids_to_tokens(list(readout.outcomes[0])) == [" "]
    (readout,) = tokenize(own, (asked("I have", ("watermelons",)),)).readouts
    assert int(readout.position[0]) == 2
    assert own.convert_ids_to_tokens(list(readout.outcomes[0])) == ["Ġwater"]


def test_outcomes_that_start_alike_are_refused_by_word_and_piece(letters):
    with pytest.raises(OutcomeError) as error:
        tokenize(letters, (asked("2+2=", ("4", "12", "17")),))
    said = str(error.value)
    assert "'2+2=': the a0 outcomes '17' ([" in said
    assert "'1', '7'])" in said
    assert "'12' ([" in said
    assert "'1', '2'])" in said
    assert "choose words that differ in this tokenizer" in said


@pytest.mark.parametrize("outcomes", [("1", "12"), ("12", "1")])
def test_an_outcome_that_begins_another_is_refused_by_word_and_piece(letters, outcomes):
    with pytest.raises(OutcomeError) as error:
        tokenize(letters, (asked("2+2=", outcomes),))
    said = str(error.value)
    assert "'1' ([" in said
    assert "'12' ([" in said
    assert "'1', '2'])" in said


def test_a_real_tokenizer_that_spells_numbers_cannot_tell_12_from_17(shared_tokenizer):
    text = "If I have 12 foxes and I take away 5, how many foxes do I have?"
    with pytest.raises(OutcomeError, match=r"'12' .*'▁', '1', '2'.* and '17' .*'▁', '1', '7'"):
        tokenize(shared_tokenizer("stories"), (pattern("take-away").match(text),))


def test_answers_that_melt_into_the_next_word_are_refused():
    """A tokenizer with one token for "4 foxes" would read another token than is written."""
    pieces = ["2", "=", " ", "4", "5", "foxes", " 4", " 5", "4 foxes", " 4 foxes", " foxes"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    melting = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert len(melting("2= 4 foxes")["input_ids"]) == 3
    with pytest.raises(OutcomeError, match="has other tokens without the text after a0"):
        tokenize(melting, (asked("2=", ("4", "5"), ("foxes", "=")),))


# Counterfactuals are read behind the words of their clean twin.


def test_forced_answers_are_written_in_place_of_the_own_ones(own):
    clean = asked("I have 5. Now I have", ("3", "7"), ("foxes", "coins"))
    other = asked("I have 9. Now I have", ("7", "3"), ("coins", "foxes"))
    batch = tokenize(own, (other,), answers_from=(clean,))
    assert "".join(batch.tokens[0]) == "<bos>I have 9. Now I have 3 foxes"
    assert own.convert_ids_to_tokens(batch.readout("a0").answer.tolist()) == ["Ġ7"]
    assert own.convert_ids_to_tokens(batch.readout("a1").answer.tolist()) == ["Ġcoins"]
    assert [batch.tokens[0][p] for p in batch.positions[0]] == [" have", " 3"]


# What no batch can be made of.


def test_an_empty_batch_is_refused(own):
    with pytest.raises(BatchError, match="needs at least one question"):
        tokenize(own, ())


def test_a_prompt_without_text_is_refused_by_its_place(own):
    with pytest.raises(BatchError, match="Prompt 1 has no text"):
        tokenize(own, (asked("I have", ("1", "2")), asked("  ", ("1", "2"))))


def test_a_text_that_is_too_long_is_refused_with_both_lengths(own):
    length = tokenize(own, (fox(),)).ids.shape[1]
    assert tokenize(own, (fox(),), max_length=length).ids.shape[1] == length
    with pytest.raises(BatchError, match=f"has {length} tokens .* the model takes {length - 1}"):
        tokenize(own, (fox(),), max_length=length - 1)


def test_a_tokenizer_that_keeps_no_offsets_is_refused():
    with pytest.raises(TokenizerError, match="ByT5Tokenizer has no character offsets"):
        tokenize(ByT5Tokenizer(), (fox(),))


def test_questions_with_different_answers_do_not_share_a_batch(own):
    with pytest.raises(
        BatchError, match=r"answers \['a0'\], the first prompt \['number', 'noun'\]"
    ):
        tokenize(own, (fox(), asked("I have", ("1", "2"))))


def test_questions_of_different_patterns_share_a_batch(own):
    questions = (fox(), pattern("copy").sample_questions(1, seed=0)[0])
    batch = tokenize(own, questions)
    assert len(batch) == 2
    assert [row for row, there in enumerate(batch.role_mask("reply_noun").any(1)) if there] == [
        0,
        1,
    ]


def test_questions_without_answers_of_the_same_name_may_have_other_outcomes(own):
    more = replace(fox(), outcomes=(("number", ("1", "9", "8", "7")), ("noun", ("foxes",))))
    batch = tokenize(own, (fox(), more))
    assert [len(tokens) for tokens in batch.readout("number").outcomes] == [3, 4]
    assert [len(tokens) for tokens in batch.readout("noun").outcomes] == [2, 1]
