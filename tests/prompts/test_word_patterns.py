"""Word patterns turn templates over word lists into pairs, roles, answers and foils."""

import pytest

import probes as pb
from probes.errors import PatternError
from probes.prompts.catalog import list_patterns, pattern, published_circuit

FILE = """
[words]
name = ["Mary", "John", "Anna"]
[tables]
animal = [
    { base = "cat", many = "cats", sound = "meow" },
    { base = "dog", many = "dogs", sound = "bark" },
]
be = [{ base = "is", many = "are" }]
[pattern.gift]
title = "who is given it"
slots = { io = "name", s = "name" }
templates = ["When {io} met {s1=s}, {s2=s} [spoke|spoke] to"]
answer = "io"
foils = ["s"]
contrasts = { s2 = { s2 = "io", answer = "s", foils = ["io"] }, io = {} }
[pattern.agree]
title = "number of the verb"
slots = { animal = "animal", number = ["base", "many"], be = "be" }
templates = ["The {animal:number}"]
answer = "be:number"
contrasts = { number = {} }
[pattern.sound]
title = "what it says"
slots = { animal = "animal" }
templates = ["The {animal}:"]
answer = "animal:sound"
contrasts = { animal = {} }
delimiter = ""
"""


@pytest.fixture
def written(tmp_path):
    def write(old="", new=""):
        path = tmp_path / "patterns.toml"
        path.write_text(FILE.replace(old, new) if old else FILE, encoding="utf-8")
        return list_patterns(path)

    return write


def test_a_file_of_patterns_may_be_named_by_text(written, tmp_path):
    assert written().keys() == list_patterns(str(tmp_path / "patterns.toml")).keys()


def test_a_contrast_shows_another_slot_in_a_role_or_draws_another_word(written):
    gift = written()["gift"]
    assert gift.contrasts == ("s2", "io")
    flipped, renamed = (
        next(pair for pair in gift.user_pairs if pair.contrast == name) for name in gift.contrasts
    )
    io, s = (flipped.clean.role_text(role) for role in ("io", "s1"))
    assert flipped.clean.text == f"When {io} met {s}, {s} spoke to"
    assert flipped.counterfactual.text == f"When {io} met {s}, {io} spoke to"
    assert flipped.clean.outcomes == (("answer", (io, s)),)
    assert flipped.counterfactual.outcomes == (("answer", (s, io)),)
    assert [role for role, _, _ in flipped.counterfactual.roles] == ["io", "s1", "s2", "spoke"]
    assert renamed.clean.answer("answer") == renamed.clean.role_text("io")
    assert renamed.counterfactual.answer("answer") == renamed.counterfactual.role_text("io")
    assert renamed.clean.role_text("s2") == renamed.counterfactual.role_text("s2")
    assert len({text for _, texts in renamed.clean.outcomes for text in texts}) == 3


def test_a_form_may_be_named_by_a_slot(written):
    pairs = written()["agree"].user_pairs
    assert {(p.clean.text, p.clean.answer("answer")) for p in pairs} == {
        *(("The cat", "is"), ("The cats", "are"), ("The dog", "is"), ("The dogs", "are"))
    }
    assert all(p.counterfactual.text.startswith(p.clean.text[:7]) for p in pairs)


def test_an_attribute_may_be_the_answer_and_the_delimiter_none(written):
    assert {p.clean.full_text for p in written()["sound"].user_pairs} == {
        *("The cat:meow", "The dog:bark")
    }


def test_draws_from_a_word_pattern_follow_the_seed(written):
    gift = pattern("ioi")
    first, again, other = (gift.sample_pairs("s2", 20, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    questions = gift.sample_questions(40, seed=0)
    assert questions != gift.sample_questions(40, seed=1)
    assert len({question.text for question in questions}) == 40


@pytest.mark.parametrize(
    "old,new,said",
    [
        ('title = "who is given it"', 'tilte = "x"', r"has the keys \['tilte'\]: known are answer"),
        ('io = "name", s', 'io = "nam", s', "Word list 'nam' is unknown: known are name, animal"),
        ('answer = "io"\nfoils', 'answer = "oi"\nfoils', "Slot 'oi' is unknown: declare it"),
        ('"be:number"', '"be:count"', "'is' has no form 'count': it has"),
        ('s2 = { s2 = "io"', 's2 = { s3 = "io"', r"has no role \['s3'\]: it has"),
        ("io = {} }", "i = {} }", "Contrast 'i' of 'gift' is no slot: name one, or say"),
        ("io = {} }", "s = {} }", "Contrast 's' of 'gift' never changes the answer 'io'"),
        ('["Mary", "John", "Anna"]', '["Mary"]', "Slot 's' of 'gift' has too few words"),
        ('["Mary", "John", "Anna"]', "3", "Words 3 found: give a list"),
    ],
)
def test_a_malformed_word_pattern_is_refused(written, old, new, said):
    with pytest.raises(PatternError, match=said):
        written(old, new)


@pytest.mark.parametrize("name", ["ioi", "greater-than"])
def test_published_circuits_name_heads_that_exist(name):
    known = published_circuit(name)
    heads = [head for group in known["heads"].values() for head in group]
    assert len(heads) == len(set(heads)) == {"ioi": 26, "greater-than": 9}[name]
    for head in heads:
        layer, number = head.removeprefix("L").split(".H")
        assert int(layer) < known["layers"]
        assert int(number) < known["heads_per_layer"]
    assert published_circuit("capital") == {}


WORD_PATTERNS = [n for n, p in list_patterns().items() if p.user_pairs]


@pytest.mark.parametrize("name", WORD_PATTERNS)
@pytest.mark.parametrize("tokenizer", ["gpt2", "pythia"])
def test_pairs_of_shipped_word_patterns_have_equal_tokens(name, tokenizer, shared_tokenizer):
    tokenizer, shipped = shared_tokenizer(tokenizer), pattern(name)
    assert all(
        sum(pair.contrast == contrast for pair in shipped.user_pairs) >= 100
        for contrast in shipped.contrasts
    )
    batch = pb.tokenize_pairs(tokenizer, shipped.user_pairs[::8])
    assert bool(batch.fully_aligned.all())
