"""Prompt formats: examples apart from the questions, the model's own chat template, roles kept."""

import copy
import json
import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from probes.errors import PatternError, TokenizerError
from probes.prompts.catalog import pattern
from probes.prompts.format.chat import split_lead_in
from probes.prompts.format.prompt_format import ANSWER_FORMS, PromptFormat
from probes.prompts.format.wrapper import SYSTEM_LINE
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs

TURNS = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


def chat_tokenizer(template=TURNS):
    """One token for each character and each turn; it writes a start token before each text."""
    added = ["<bos>", "<system>", "<user>", "<assistant>", "<end>"]
    vocab = {token: n for n, token in enumerate(["<unk>", *added, *string.printable])}
    letters = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.add_special_tokens([AddedToken(token, special=True) for token in added])
    letters.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", bos_token="<bos>", chat_template=template
    )


@pytest.fixture(scope="module")
def chat():
    return chat_tokenizer()


def texts_by_role(batch, row=0):
    """Text of each role's tokens, in the order of the text."""
    words = {}
    present = batch.role_of[row][batch.mask[row]]
    for token, role in zip(batch.tokens[row], present.tolist(), strict=True):
        words[batch.roles[role]] = words.get(batch.roles[role], "") + token
    return words


# Names of formats.

FORMATS = st.builds(
    PromptFormat,
    shots=st.integers(0, 32),
    chat=st.booleans(),
    answer=st.sampled_from(ANSWER_FORMS),
    numbers=st.none() | st.tuples(st.integers(0, 99), st.integers(100, 999)),
    digits=st.booleans(),
    seed=st.integers(0, 10**9 - 1),
)


@given(FORMATS, st.booleans())
def test_a_format_is_read_back_from_its_name(format, system):
    format = replace(format, system=system and format.chat)
    assert PromptFormat.parse(str(format)) == format


@pytest.mark.parametrize(
    "name", ["", "shot", "few-shot-", "few-shot-99", "chat:long", "plain@9-0", "plain-few-shot-2"]
)
def test_an_unknown_format_is_refused_in_one_line(name):
    with pytest.raises(PatternError) as caught:
        pattern("take-away", format=name)
    assert "\n" not in str(caught.value)


def test_plain_text_is_the_pattern_itself():
    assert pattern("take-away", format="plain") is pattern("take-away")


def test_a_pattern_takes_one_format_only():
    with pytest.raises(PatternError, match="in the format few-shot-2 already"):
        pattern(pattern("take-away", format="few-shot-2"), format="chat")


# Few-shot examples.


def test_examples_share_no_numbers_verbs_or_nouns_with_any_question():
    shown = pattern("take-away", format="few-shot-4")
    examples = shown.wrapper.examples
    assert [example.pattern for example in examples] == ["get-more", "take-away"] * 2
    words = {value for e in examples for value in dict(e.slots).values() if isinstance(value, str)}
    numbers = {(example["x"], example["y"]) for example in examples}
    assert len(numbers) == len({example.answers[0] for example in examples}) == 4
    for side in (shown, shown.flipped()):
        for question in side.sample_questions(300, seed=0):
            assert (question["x"], question["y"]) not in numbers
            assert not words & set(map(str, dict(question.slots).values()))


def test_both_operations_have_the_same_examples():
    first, second = (pattern(name, format="few-shot-4") for name in ("take-away", "get-more"))
    assert first.wrapper == second.wrapper == first.flipped().wrapper
    assert pattern("take-away", format="few-shot-4#1").wrapper != first.wrapper


@pytest.mark.parametrize("name", ["few-shot-2", "few-shot-2:bare", "few-shot-2:short", "chat"])
def test_pairs_stay_aligned_and_roles_keep_their_words(name, own):
    own = copy.deepcopy(own)
    own.chat_template = "Ask: {{ messages[-1]['content'] }} Now"
    shown = pattern("take-away-told", format=name)
    pairs = sample_pairs(shown, "operation", 4, tokenizers=[own], seed=0)
    batch = tokenize_pairs(own, pairs)
    assert batch.fully_aligned.all()
    for row, pair in enumerate(pairs):
        words, plain = texts_by_role(batch.clean, row), pattern("take-away-told")
        match = plain.make_question(
            plain._find_template(pair.clean.template), dict(pair.clean.slots), pair.clean.numerals
        )
        kept = [
            r
            for r, _, end in match.roles
            if not ("bare" in name and end > len(split_lead_in(match.text)[0]))
        ]
        assert [words[role].strip() for role in kept] == [match.role_text(role) for role in kept]
        added = {"chat", "turn"} if name == "chat" else {"shot"}
        answers = {f"reply_{answer}" for answer, _ in pair.clean.answers}
        assert set(words) - {"bos", "rest"} == {*kept, *added, *answers}


def test_interchange_pairs_are_in_the_format_on_both_sides(own):
    shown = pattern("take-away-told", format="few-shot-2")
    pairs = sample_interchange_pairs(shown, 4, tokenizers=[own], seed=0)
    assert pairs.number_labels[0] == "base"
    before = {q.text[: q.roles[0][2]] for p in pairs.same for q in (p.clean, p.counterfactual)}
    assert len(before) == 1


def test_short_answers_leave_out_all_but_the_first():
    shown = pattern("take-away", format="few-shot-2:short@0-9")
    question = shown.sample_questions(1, seed=0)[0]
    assert [name for name, _ in question.answers] == ["number"]
    assert max(question["x"], question["y"]) <= 9
    assert question.text.splitlines()[0].rpartition(" ")[2].isdigit()
    with pytest.raises(PatternError, match="need a number, then a noun"):
        sample_interchange_pairs(shown, 1, tokenizers=[], seed=0)


def write_pairs(folder, count, roles=None):
    lines = [
        {
            "clean": f"Girl {n} is here. Then",
            "counterfactual": f"Boy {n} is here. Then",
            "answer": "she",
            "counterfactual_answer": "he",
            "roles": roles or {"where": "here"},
        }
        for n in range(count)
    ]
    path = folder / "gender.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_examples_of_a_pairs_file_are_left_out_of_it(tmp_path):
    given = pattern(str(write_pairs(tmp_path, 10)), format="few-shot-4")
    examples = [example.text for example in given.wrapper.examples]
    assert (len(given.user_pairs), len(examples)) == (6, 4)
    pair = given.user_pairs[0]
    assert pair.clean.text.startswith("".join(f"{e.full_text}.\n" for e in given.wrapper.examples))
    assert not any(pair.clean.text.endswith(text) for text in examples)
    assert pair.clean.role_text("where") == pair.counterfactual.role_text("where") == "here"


@pytest.mark.parametrize(
    ("count", "roles", "name", "says"),
    [
        (4, None, "few-shot-4", "4 pairs, and 4 examples need as many more"),
        (8, None, "plain@0-9", "a pairs file, whose numbers are given"),
        (8, {"shot": "here"}, "few-shot-2", "role 'shot' is one that the format few-shot-2 adds"),
    ],
)
def test_a_pairs_file_that_does_not_fit_a_format_is_refused(tmp_path, count, roles, name, says):
    with pytest.raises(PatternError, match=says):
        pattern(str(write_pairs(tmp_path, count, roles)), format=name)


# Chat templates.


@pytest.mark.parametrize(
    ("name", "answer"),
    [("chat", "Answer:"), ("chat-system-few-shot-2", "Answer:"), ("chat:bare", "")],
)
@pytest.mark.parametrize("start", ["", "{{ bos_token }}"])
def test_a_chat_has_the_tokens_of_the_models_own_template(start, name, answer):
    tokenizer = chat_tokenizer(start + TURNS)
    shown = pattern("take-away", format=name)
    question = shown.sample_questions(1, seed=0)[0]
    user, _ = split_lead_in(question.text)
    chat = question.conversation
    messages = [{"role": "system", "content": SYSTEM_LINE}] if "system" in name else []
    for said, replied in chat.turns:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": replied}]
    messages.append({"role": "user", "content": user})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    batch = tokenize(tokenizer, question)
    ids = batch.ids[0].tolist()
    assert ids[: len(expected)] == expected
    assert ids.count(tokenizer.bos_token_id) == len(start) // len("{{ bos_token }}")
    after = answer + (" " if answer else "") + f"{question.answer('number')} "
    written = "".join(batch.tokens[0])
    assert written.partition(f"{user}<end>\n<assistant>\n")[2].startswith(after)
    roles = texts_by_role(batch)
    assert roles["turn"] == "<end>\n<assistant>\n"
    assert roles.get("answer", "").strip() == answer
    assert ("shot" in roles) == bool(chat.turns)


def test_two_models_read_one_pattern_each_in_its_own_template(chat):
    other = chat_tokenizer("{% for m in messages %}[{{ m['content'] }}]{% endfor %}>")
    shown = pattern("take-away-told", format="chat@0-9")
    pairs = sample_pairs(shown, "x", 4, tokenizers=[chat, other], seed=0)
    first, second = (tokenize_pairs(tokenizer, pairs) for tokenizer in (chat, other))
    assert set(first.clean.roles) - {"bos"} == set(second.clean.roles)
    assert "".join(second.clean.tokens[0]).startswith("[I ")


def test_an_unfinished_sentence_is_the_beginning_of_the_assistants_turn(tmp_path, chat):
    path = tmp_path / "capital.jsonl"
    pair = {"clean": "The capital of France is", "counterfactual": "The capital of Italy is",
            "answer": "Paris", "counterfactual_answer": "Rome", "roles": {"country": "France"},
            "counterfactual_roles": {"country": "Italy"}}  # fmt: skip
    path.write_text(json.dumps(pair))
    batch = tokenize(chat, pattern(str(path), format="chat").user_pairs[0].clean)
    roles = texts_by_role(batch)
    assert "".join(batch.tokens[0]).endswith("<assistant>\nThe capital of France is Paris")
    assert (roles["country"], roles["turn"]) == (
        " France",
        "Continue the text.<end>\n<assistant>\n",
    )


@pytest.mark.parametrize(
    ("template", "name", "says"),
    [
        (None, "chat", "has no chat template"),
        ("{{ messages[-1]['content'] | upper }}", "chat", "changes or drops the user's text"),
        ("{{ messages[-1]['content'] }}", "chat-system", "changes or drops the system's text"),
        ("{{ raise_exception('no system') }}", "chat-system", r"refuses system user \(no system\)"),
    ],
)
def test_a_template_that_does_not_serve_is_refused_in_one_line(template, name, says):
    question = pattern("take-away", format=name).sample_questions(1, seed=0)[0]
    with pytest.raises(TokenizerError, match=says) as caught:
        tokenize(chat_tokenizer(template), question)
    assert "\n" not in str(caught.value)


def test_a_role_in_both_turns_is_refused(tmp_path, chat):
    given = pattern(str(write_pairs(tmp_path, 4, {"both": "here. Then"})), format="chat")
    with pytest.raises(PatternError, match="role 'both' lies in both turns"):
        tokenize(chat, given.user_pairs[0].clean)


def test_a_template_may_separate_the_answer_by_a_space():
    """A turn that ends in [/INST] is answered behind a space, not by a space and a delimiter."""
    tokenizer = chat_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]"
        "{% else %} {{ m['content'] }}{% endif %}{% endfor %}"
    )
    question = pattern("take-away", format="chat:bare-short").sample_questions(1, seed=0)[0]
    batch = tokenize(tokenizer, question)
    assert "".join(batch.tokens[0]).endswith(f"?] {question.answer('number')}")


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2", "qwen"])
def test_pretrained_models_read_their_own_template(name, real_folder):
    tokenizer = AutoTokenizer.from_pretrained(real_folder(name))
    question = pattern("take-away", format="chat:bare-short").sample_questions(1, seed=0)[0]
    messages = [{"role": "user", "content": question.text}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    batch = tokenize(tokenizer, question)
    assert batch.ids[0, : len(expected)].tolist() == expected
    assert batch.roles[batch.role_of[0, batch.readouts[0].position[0]]] == "turn"
