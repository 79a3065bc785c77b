"""Batches hold the right tokens in the right roles, for every kind of tokenizer."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from probes.errors import BatchError, OutcomeError, SiteError, TokenizerError
from probes.prompts.catalog import pattern
from probes.prompts.question import Question
from probes.prompts.tokens import tokenization
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.once import tokenize_once
from probes.prompts.tokens.pair_batch import tokenizable_by
from probes.prompts.tokens.special_tokens import SpecialTokenWarning, set_bos, special_prefix
from probes.prompts.tokens.tokenization import BOS, assign_roles

FOX = "If I have two foxes and I take away one, how many foxes do I have?"


def fox():
    return pattern("take-away").match(FOX)


def make_question(text, *answers, roles=()):
    """Question from a text and outcomes; the first outcome of each answer is correct."""
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


def sample(tokenizer, name="take-away", count=8):
    return pattern(name).sample_questions(count, seed=3, keep=tokenizable_by(tokenizer))


def read(tokenizer, ids):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def text_of(tokenizer, batch, row, role):
    """Text of the tokens of a role, without spaces."""
    return "".join(read(tokenizer, batch.ids[row][batch.role_mask(role)[row]]).split())


# Prompts that are tokenized once.


def test_each_question_is_tokenized_once_in_its_context(own, monkeypatch):
    first, second = sample(own), sample(own)[2:]
    expected = [tokenize(own, questions) for questions in (first, second)]
    counts, tokenized = [], tokenization._tokenize
    monkeypatch.setattr(
        tokenization, "_tokenize", lambda *a: counts.append(len(a[2])) or tokenized(*a)
    )
    with tokenize_once():
        found = [tokenize(own, questions) for questions in (first, second)]
        tokenize(deepcopy(own), second)
        tokenize(own, second, add_bos=False)
        with tokenize_once():  # It shares what is known.
            tokenize(own, second)
        with pytest.raises(BatchError, match="same answers"):
            tokenize(own, [*first, make_question("A fox", ("sat", "ran"))])
    tokenize(own, second)
    assert counts == [8, 6, 6, 6]  # Another tokenizer, another prefix, and after the context.
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.ids, other.ids) and one.tokens == other.tokens
        assert torch.equal(one.role_of, other.role_of) and one.roles == other.roles


# Roles, on every kind of tokenizer.


@pytest.mark.parametrize("name", ["take-away", "taken-told", "two-owners", "distractor"])
def test_tokens_of_a_role_spell_exactly_its_words(tokenizer, name):
    questions = sample(tokenizer, name)
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
    batch = tokenize(tokenizer, sample(tokenizer))
    claims = torch.stack([batch.role_mask(role) for role in batch.roles]).sum(0)
    assert torch.equal(claims, batch.mask.long())
    assert torch.equal(batch.role_of == -1, ~batch.mask)


def test_all_tokens_together_spell_the_text_with_its_answers(tokenizer):
    questions = sample(tokenizer)
    batch = tokenize(tokenizer, questions)
    for row, question in enumerate(questions):
        ids = batch.ids[row][batch.mask[row]][int(BOS in batch.roles) :]
        assert "".join(read(tokenizer, ids).split()) == question.full_text.replace(" ", "")
        assert len(batch.tokens[row]) == int(batch.mask[row].sum())


# Special tokens.


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("own", ["<bos>"]), ("letters", []), ("gpt2", []), ("pythia", []), ("stories", ["<s>"])],
)
def test_a_prompt_starts_with_the_special_tokens_that_the_tokenizer_writes(request, name, prefix):
    if name in ("own", "letters"):
        tokenizer = request.getfixturevalue(name)
    else:
        tokenizer = request.getfixturevalue("shared_tokenizer")(name)
    assert tokenizer.convert_ids_to_tokens(list(special_prefix(tokenizer))) == prefix
    batch = tokenize(tokenizer, sample(tokenizer))
    assert (BOS in batch.roles) == bool(prefix)
    for row, question in enumerate(batch.questions):
        whole = tokenizer(question.full_text)["input_ids"]
        whole = whole[: len(whole) - whole.count(tokenizer.eos_token_id) * (name == "stories")]
        assert batch.ids[row][batch.mask[row]].tolist() == whole


def prefixed(own, template, **declared):
    """The family's tokenizer with another template, in which <pad> is a second start token."""
    tokenizer = deepcopy(own)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<pad>", 0), ("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


def test_a_prefix_of_two_tokens_has_the_role_bos_and_a_suffix_is_left_out(own):
    tokenizer = prefixed(own, "<pad> <bos> $A <eos>")
    batch = tokenize(tokenizer, (fox(),))
    plain = tokenize(own, (fox(),), add_bos=False)
    assert batch.tokens[0] == ("<pad>", "<bos>", *plain.tokens[0])
    assert batch.role_mask(BOS)[0].tolist()[:3] == [True, True, False]
    for here, there in zip(batch.readouts, plain.readouts, strict=True):
        for name in ("start", "position", "end"):
            assert int(getattr(here, name)[0]) == int(getattr(there, name)[0]) + 2


def test_add_bos_overrides_the_tokenizer(own, letters):
    never = prefixed(own, "$A")
    assert BOS not in tokenize(never, (fox(),)).roles
    assert torch.equal(tokenize(never, fox(), add_bos=True).ids, tokenize(own, fox()).ids)
    assert torch.equal(tokenize(own, fox(), add_bos=False).ids, tokenize(never, fox()).ids)
    with pytest.raises(TokenizerError, match="declares no BOS token: leave add_bos out"):
        tokenize(letters, fox(), add_bos=True)


def test_set_bos_changes_what_the_tokenizer_itself_writes(own, letters, shared_tokenizer):
    for tokenizer in (deepcopy(own), prefixed(own, "<pad> <bos> $A"), shared_tokenizer("gpt2")):
        tokenizer = deepcopy(tokenizer)
        for add_bos, prefix in ((True, (tokenizer.bos_token_id,)), (False, ())):
            set_bos(tokenizer, add_bos)
            assert special_prefix(tokenizer) == prefix
            batch = tokenize(tokenizer, fox())
            assert batch.ids[0].tolist() == tokenizer(fox().full_text)["input_ids"]
    with pytest.raises(TokenizerError, match="declares no BOS token"):
        set_bos(letters, True)


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_a_text_that_begins_with_the_start_token_gets_no_second_one(own, add_bos):
    given = make_question("<bos>I have 5. Now I have", ("3", "7"))
    batch = tokenize(own, (given,), add_bos=add_bos)
    bare = tokenize(own, (make_question("I have 5. Now I have", ("3", "7")),))
    assert (
        batch.ids[0].tolist()
        == [1, *own(given.full_text, add_special_tokens=False)["input_ids"]][1:]
    )
    assert batch.role_mask(BOS).sum() == bare.role_mask(BOS).sum() == 1
    assert batch.tokens[0][0] == "<bos>"


def test_the_text_of_a_special_token_inside_a_prompt_is_a_warning(own, recwarn):
    tokenize(own, ("<bos>I have 5", "an <unknown> mark"))
    assert not recwarn.list
    with pytest.warns(SpecialTokenWarning, match="reads <eos>, <bos> in a text as a special token"):
        tokenize(own, ("I have <eos> foxes <bos>", "You <eos>"))


def test_roles_of_the_fox_sentence_are_in_text_order(own):
    batch = tokenize(own, (fox(),))
    assert batch.roles == (
        *("bos", "rest", "have", "x", "thing", "op", "y", "ask", "thing_asked", "answer"),
        *("reply_number", "reply_noun"),
    )
    assert batch.tokens[0][:9] == (
        *("<bos>", "If", " I", " have", " two", " foxes", " and", " I", " take"),
    )
    assert batch.roles[batch.role_of[0, 5]] == "thing"


def test_all_tokens_of_a_long_word_have_its_role(own):
    question = pattern("take-away").match(FOX.replace("foxes", "watermelons"))
    batch = tokenize(own, (question,))
    for role in ("thing", "thing_asked", "reply_noun"):
        tokens = [
            t for t, there in zip(batch.tokens[0], batch.role_mask(role)[0], strict=True) if there
        ]
        assert tokens == [" water", "mel", "ons"]


def test_a_white_space_token_has_the_role_of_the_next_token():
    spans = (("who", 0, 2), ("what", 3, 5))
    assert assign_roles("ab cd .", [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)], spans) == (
        *("who", "what", "what", "rest", "rest"),
    )


def test_a_token_across_two_roles_has_the_one_it_overlaps_more():
    assert assign_roles("abcdef", [(0, 6)], (("few", 0, 2), ("many", 2, 6))) == ("many",)
    assert assign_roles(" ab", [(0, 3)], (("word", 1, 3),)) == ("word",)
    assert assign_roles("ab", [(0, 0), (0, 2)], ()) == ("rest", "rest")


def test_white_space_does_not_count_towards_the_overlap_with_a_role():
    spans = (("first", 0, 4), ("last", 4, 5))
    assert assign_roles("x   y", [(0, 1), (1, 5)], spans) == ("first", "last")
    spans = (("first", 0, 1), ("last", 1, 5))
    assert assign_roles("x   y", [(0, 4), (4, 5)], spans) == ("first", "last")


def test_unknown_roles_and_answers_are_refused(own):
    batch = tokenize(own, (fox(),))
    with pytest.raises(SiteError, match="'name' is not in this batch: it has bos, rest, have"):
        batch.role_mask("name")
    with pytest.raises(SiteError, match=r"'verb' is not read in .* it has \['number', 'noun'\]"):
        batch.readout("verb")


# Padding.


def test_padding_is_on_the_left_and_changes_nothing_else(tokenizer):
    questions = sample(tokenizer, count=12)
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


def test_a_tokenizer_without_a_pad_token_can_pad(letters):
    assert letters.pad_token_id is None
    batch = tokenize(
        letters, (make_question("Hello, ab", ("c", "d")), make_question("ab", ("c", "d")))
    )
    assert batch.mask.sum(1).tolist() == [11, 4]
    assert batch.mask[1].tolist() == [False] * 7 + [True] * 4


# Readouts.


def test_each_answer_is_read_where_it_first_differs_from_a_foil(tokenizer):
    questions = sample(tokenizer)
    batch = tokenize(tokenizer, questions)
    for row, question in enumerate(questions):
        for name, outcomes in question.outcomes:
            readout = batch.readout(name)
            start, end = int(readout.position[row]) + 1, int(readout.end[row])
            before = batch.ids[row][batch.mask[row]].tolist()
            before = before[: len(before) - (batch.ids.shape[1] - start)]
            tokens = readout.outcomes[row]
            assert len(tokens) == len(set(tokens)) <= len(outcomes)
            assert readout.answer[row] == tokens[0] == batch.ids[row, start]
            # Each outcome goes on with one of these tokens; foils with the answer's differ later.
            behind = question.text + ("" if name == "number" else f" {question.answer('number')}")
            seen = set()
            for outcome in outcomes:
                ids = tokenizer(f"{behind} {outcome}", add_special_tokens=False)["input_ids"]
                ids = [tokenizer.bos_token_id] * (BOS in batch.roles) + ids
                assert ids[: len(before)] == before
                seen |= set(ids[len(before) : len(before) + 1])
            assert seen == set(tokens)
            assert min(at for at, _, _ in readout.choices[row]) == start - 1
            written = "".join(read(tokenizer, batch.ids[row, :end]).split())
            assert written.endswith((f"{behind} {question.answer(name)}").replace(" ", ""))


def test_the_readout_is_after_a_space_that_all_outcomes_share(letters):
    batch = tokenize(letters, (make_question("2+2=", ("4", "5")),))
    (readout,) = batch.readouts
    assert batch.tokens[0] == ("2", "+", "2", "=", " ", "4")
    assert (int(readout.position[0]), int(readout.end[0])) == (4, 6)
    assert letters.convert_ids_to_tokens(list(readout.outcomes[0])) == ["4", "5"]


def test_the_readout_is_after_the_space_token_of_a_real_tokenizer(shared_tokenizer):
    batch = tokenize(shared_tokenizer("stories"), (fox(),))
    readout = batch.readout("number")
    at = int(readout.position[0])
    assert batch.tokens[0][at : at + 2] == (" ", "1")
    assert batch.tokens[0][at - 1] == ":"


def test_the_readout_is_at_the_colon_where_the_number_token_includes_the_space(own):
    batch = tokenize(own, (fox(),))
    at = int(batch.readout("number").position[0])
    assert batch.tokens[0][at : at + 2] == (":", " 1")


def test_a_long_answer_is_read_where_its_outcomes_first_differ(letters):
    batch = tokenize(letters, (make_question("Say", ("foxes", "fobs", "fog"), ("now", "not")),))
    first, second = batch.readouts
    assert "".join(batch.tokens[0]) == "Say foxes now"
    assert int(first.position[0]) == 5  # the o of foxes
    assert letters.convert_ids_to_tokens(list(first.outcomes[0])) == ["x", "b", "g"]
    assert int(first.end[0]) == 9
    assert int(second.position[0]) == 11  # the o of now
    assert letters.convert_ids_to_tokens(list(second.outcomes[0])) == ["w", "t"]
    assert int(second.end[0]) == 13


def test_an_answer_without_foils_is_read_at_its_first_token(letters, own):
    (readout,) = tokenize(letters, (make_question("Say", ("foxes",)),)).readouts
    assert int(readout.position[0]) == 2
    assert letters.convert_ids_to_tokens(list(readout.outcomes[0])) == [" "]
    (readout,) = tokenize(own, (make_question("I have", ("watermelons",)),)).readouts
    assert int(readout.position[0]) == 2
    assert own.convert_ids_to_tokens(list(readout.outcomes[0])) == ["Ġwater"]


@pytest.mark.parametrize("outcomes", [("1", "12"), ("12", "1")])
def test_an_outcome_that_is_a_prefix_of_another_is_refused_with_its_tokens(letters, outcomes):
    with pytest.raises(OutcomeError) as error:
        tokenize(letters, (make_question("2+2=", outcomes),))
    said = str(error.value)
    assert "'1' ([" in said
    assert "'12' ([" in said
    assert "'1', '2'])" in said


def test_answers_that_merge_with_the_next_word_are_refused():
    """With one token for "4 foxes", the token of "4" is not in the text."""
    pieces = ["2", "=", " ", "4", "5", "foxes", " 4", " 5", "4 foxes", " 4 foxes", " foxes"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    merging = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert len(merging("2= 4 foxes")["input_ids"]) == 3
    with pytest.raises(OutcomeError, match="has other tokens without the text after a0"):
        tokenize(merging, (make_question("2=", ("4", "5"), ("foxes", "=")),))


# Text is used exactly as given.


@pytest.mark.parametrize(
    ("text", "answer", "delimiter", "whole"),
    [
        ("I have", "2", " ", "I have 2"),
        ("I have ", "2", " ", "I have 2"),
        ("She:\n", "Yes", " ", "She:\nYes"),
        ("The girl is glad.", "\nshe", " ", "The girl is glad.\nshe"),
        ("I have  ", " 2 ", " ", "I have   2 "),
        ("首都是", "巴黎", "", "首都是巴黎"),
    ],
)
def test_prompt_and_answer_are_concatenated_exactly_as_given(text, answer, delimiter, whole):
    question = replace(make_question(text, (answer, "no")), delimiter=delimiter)
    assert question.full_text == whole
    tokens = Tokenizer(models.WordLevel({c: k for k, c in enumerate(sorted({*whole, *"no "}))}))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    batch = tokenize(PreTrainedTokenizerFast(tokenizer_object=tokens), (question,))
    assert "".join(batch.tokens[0]) == whole
    (readout,) = batch.readouts
    assert int(readout.start[0]) == len(text) - 1
    assert int(readout.end[0]) == len(whole)


def test_the_reply_includes_its_delimiter_and_the_prompt_keeps_its_white_space(letters):
    with_space, without = make_question("I have", ("2", "3")), make_question("I have ", ("2", "3"))
    a, b = tokenize(letters, (with_space,)), tokenize(letters, (without,))
    assert torch.equal(a.ids, b.ids)
    assert a.role_mask("reply_a0")[0].tolist() == [False] * 6 + [True] * 2
    # A token of white space alone has the role of the next token in both.
    assert torch.equal(a.role_of, b.role_of)
    assert (int(a.readouts[0].start[0]), int(b.readouts[0].start[0])) == (5, 6)


def test_an_answer_starts_at_its_first_token_and_not_where_outcomes_differ(letters):
    batch = tokenize(letters, (make_question("Rome", ("New York", "New Zealand")),))
    (readout,) = batch.readouts
    assert (int(readout.start[0]), int(readout.position[0])) == (3, 8)


def test_a_token_across_prompt_and_answer_is_refused():
    pieces = ["un", "happy", "lucky", "unhappy", "is", " "]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    merging = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    question = replace(make_question("un", ("happy", "lucky")), delimiter="")
    with pytest.raises(OutcomeError, match="'un' and its answer share the token 'unhappy'"):
        tokenize(merging, (question,))


def test_a_prompt_of_a_megabyte_is_refused_before_tokenization(own, monkeypatch):
    monkeypatch.setattr(type(own), "__call__", None)
    with pytest.raises(BatchError, match=r"Prompt 0, 'aaaa.* has 1000000 characters: at most"):
        tokenize(own, "a" * 1_000_000)


def test_a_lone_surrogate_is_refused_with_its_code(own):
    with pytest.raises(BatchError, match=r"Prompt 1 has a lone surrogate \(U\+D83E\)"):
        tokenize(own, ("fine", "a \ud83e fox"))


# Counterfactuals are followed by the clean answers.


def test_answers_from_other_questions_replace_the_own_answers(own):
    clean = make_question("I have 5. Now I have", ("3", "7"), ("foxes", "coins"))
    other = make_question("I have 9. Now I have", ("7", "3"), ("coins", "foxes"))
    batch = tokenize(own, (other,), answers_from=(clean,))
    assert "".join(batch.tokens[0]) == "<bos>I have 9. Now I have 3 foxes"
    assert own.convert_ids_to_tokens(batch.readout("a0").answer.tolist()) == ["Ġ7"]
    assert own.convert_ids_to_tokens(batch.readout("a1").answer.tolist()) == ["Ġcoins"]
    assert [batch.tokens[0][p] for p in batch.positions[0]] == [" have", " 3"]


# Errors.


def test_an_empty_batch_is_refused(own):
    with pytest.raises(BatchError, match="needs at least one question"):
        tokenize(own, ())


def test_an_empty_prompt_is_refused_with_its_index(own):
    with pytest.raises(BatchError, match="Prompt 1 has no text"):
        tokenize(own, (make_question("I have", ("1", "2")), make_question("  ", ("1", "2"))))


def test_a_text_above_the_context_length_is_refused_with_both_lengths(own):
    length = tokenize(own, (fox(),)).ids.shape[1]
    assert tokenize(own, (fox(),), max_length=length).ids.shape[1] == length
    with pytest.raises(BatchError, match=f"has {length} tokens .* the model takes {length - 1}"):
        tokenize(own, (fox(),), max_length=length - 1)


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(TokenizerError, match="ByT5Tokenizer has no character offsets"):
        tokenize(ByT5Tokenizer(), (fox(),))


def test_questions_with_different_answer_names_cannot_share_a_batch(own):
    with pytest.raises(
        BatchError, match=r"answers \['a0'\], the first prompt \['number', 'noun'\]"
    ):
        tokenize(own, (fox(), make_question("I have", ("1", "2"))))


def test_questions_of_different_patterns_can_share_a_batch(own):
    questions = (fox(), pattern("copy").sample_questions(1, seed=0)[0])
    batch = tokenize(own, questions)
    assert len(batch) == 2
    assert [row for row, there in enumerate(batch.role_mask("reply_noun").any(1)) if there] == [
        0,
        1,
    ]


def test_questions_of_one_batch_can_have_different_outcomes(own):
    more = replace(fox(), outcomes=(("number", ("1", "9", "8", "7")), ("noun", ("foxes",))))
    batch = tokenize(own, (fox(), more))
    assert [len(tokens) for tokens in batch.readout("number").outcomes] == [3, 4]
    assert [len(tokens) for tokens in batch.readout("noun").outcomes] == [2, 1]


def test_a_text_without_any_token_is_refused():
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(BatchError, match="'zzz' has no token in this tokenizer"):
        tokenize(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "zzz")
