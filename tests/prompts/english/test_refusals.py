"""Texts that one might misread are refused with what was found; their neighbors are read."""

import pytest

from probes.errors import MatchError
from probes.prompts.english.match import match_text
from probes.prompts.english.story import read_story

TOM, ME = "Tom has 9 apples.", "I have 5 apples."
HE, HIS, MY, LEFT = (
    "How many apples does he have?",
    "How many apples does Tom have?",
    "How many apples do I have?",
    "How many are left?",
)
OTHER_OWNER = "looked for an amount, its change and a question of one owner, and found "
UNCLEAR = "looked for one person whom each 'he', 'she' or 'it' can mean"
ANOTHER = "looked for a change that names only its owner, and found "


def refusal(text):
    with pytest.raises(MatchError) as error:
        match_text(text)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "told,word",
    [
        ("He does not eat 2 apples.", "not"),
        ("He doesn't eat 2 apples.", "doesn't"),
        ("He doesn\u2019t take away 2 apples.", "doesn\u2019t"),
        ("He dont eat 2 apples.", "dont"),
        ("He hasn't eaten 2 apples.", "hasn't"),
        ("He never eats 2 apples.", "never"),
        ("He cannot eat 2 apples.", "cannot"),
        ("He leaves without eating 2 apples.", "without"),
        ("He eats 2 apples. No, he sleeps.", "No"),
        ("He almost eats 2 apples.", "almost"),
        ("He nearly lost 2 apples.", "nearly"),
        ("He failed to eat 2 apples.", "failed"),
        ("He refuses to sell 2 apples.", "refuses"),
        ("He tries to eat 2 apples.", "tries"),
        ("He wants to buy 2 apples.", "wants"),
        ("He forgot to eat 2 apples.", "forgot"),
        ("He was going to eat 2 apples.", "going to"),
        ("He was about to eat 2 apples.", "about to"),
        ("He has to eat 2 apples.", "has to"),
        ("He would have eaten 2 apples if he were hungry.", "would"),
        ("He could eat 2 apples.", "could"),
        ("Maybe he eats 2 apples.", "Maybe"),
        ("He will eat 2 apples.", "will"),
        ("He'll eat 2 apples.", "He'll"),
        ("He eats all but 2 apples.", "all but"),
        ("He eats about 2 apples.", "about 2"),
        ("He eats at least 2 apples.", "least 2"),
        ("He eats more than 2 apples.", "than 2"),
        ("He says that he ate 2 apples.", "says"),
        ("Rarely does he eat 2 apples.", "Rarely"),
        ("He used to eat 2 apples.", "used to"),
        ("If he eats 2 apples, he is full.", "If"),
        ("He is full if he eats 2 apples.", "if"),
        ("Instead of eating 2 apples he sleeps.", "Instead of"),
    ],
)
def test_what_did_not_happen_or_is_not_sure_is_refused(told, word):
    assert f"{word!r} says that something is not so, or not sure" in refusal(f"{TOM} {told} {HE}")


@pytest.mark.parametrize("question", ["do I not have", "don't I have", "can I never eat"])
def test_negated_questions_and_questions_before_the_last_are_refused(question):
    said = refusal(f"{ME} I eat 2. How many apples {question}?")
    assert "says that something is not so" in said
    assert "one question, the last sentence" in refusal(f"{TOM} Does he eat 2 apples? {HE}")


@pytest.mark.parametrize(
    "number",
    [
        *(
            "-3",
            "\u22128",
            "- 3",
            "+9",
            "~9",
            "5\u00bd",
            "\u00bd",
            "5%",
            "50%",
            "5 %",
            "9/3",
            "2.5",
        ),
        *("1e3", "1,00", "1 000", "9\u00b2", "\u00b2", "\u0669", "9-2", "9th", "1234567890123456"),
        *("one hundred", "two thousand", "a thousand", "two dozen", "twenty one", "minus nine"),
        *("nine point", "5 percent", "one third", "two-thirds", "hundreds"),
    ],
)
@pytest.mark.parametrize(
    "text", ["Tom has {} apples. He eats 2. How many are left?",
             "I have 20 apples. I lose {} of them. How many are left?"],
)  # fmt: skip
def test_numbers_that_are_not_whole_are_named(text, number):
    said = refusal(text.format(number))
    assert f"{number!r} is not a whole number that can be read. Write each number as" in said


@pytest.mark.parametrize(
    "text,said",
    [
        (f"{ME} Tom eats 2 apples. {MY}", OTHER_OWNER + "'i' and 'tom'"),
        (f"{ME} Tom eats 2 apples. {LEFT}", OTHER_OWNER + "'i' and 'tom'"),
        (f"{ME} Tom takes away 2 of his apples. {MY}", OTHER_OWNER + "'i' and 'tom'"),
        (f"{ME} I take away 2 apples from Tom. {MY}", OTHER_OWNER + "'i' and 'tom'"),
        (f"{ME} I eat 2 of Tom's apples. {MY}", OTHER_OWNER + "'i' and 'tom'"),
        (f"{ME} I eat 2. How many apples will Tom have?", OTHER_OWNER + "'i' and 'tom'"),
        (f"{ME} I eat 2. How many apples do you have?", OTHER_OWNER + "'i' and 'you'"),
        (f"{ME} We eat 2. {MY}", OTHER_OWNER + "'i' and 'we'"),
        (f"{ME} A dog eats 2 apples. {MY}", OTHER_OWNER + "'i' and 'dog'"),
        (f"{ME} My brother eats 2 apples. {MY}", OTHER_OWNER + "'i' and 'my brother'"),
        (f"My brother has 9 apples. He eats 2. {MY}", OTHER_OWNER + "'my brother' and 'i'"),
        (f"Ben has 7 apples. {ME} I buy 2 apples from him. {MY}",
         OTHER_OWNER + "'ben' and 'i'"),
        # A name in lower case is one, too.
        ("tom has 9 apples. he gives mary two apples. how many apples does mary have?",
         OTHER_OWNER + "'tom' and 'mary'"),
        ("tom has 9 apples. ben eats 2 apples. how many are left?",
         OTHER_OWNER + "'tom' and 'ben'"),
        ("tom has 9 apples. tom eats 2. how many apples does ben have?",
         OTHER_OWNER + "'tom' and 'ben'"),
        # What is given back.
        (f"{TOM} He gives two apples to Mary, who gives one apple back. {HIS}",
         OTHER_OWNER + "'tom' and 'mary'"),
        (f"{TOM} He gives two apples to Mary. Mary gives one back to him. {HIS}",
         OTHER_OWNER + "'tom' and 'mary'"),
        (f"{TOM} He eats 2 apples. Mary gives Tom 1 apple. {HIS}",
         OTHER_OWNER + "'tom' and 'mary'"),
        (f"{TOM} Leo, his brother, eats 2 apples. {HIS}", OTHER_OWNER + "'tom' and 'leo'"),
        ("There are 9 apples in the box. Tom takes 2 out. How many apples are in his bag?",
         "looked for an amount in the place that is asked about, 'bag'"),
        (f"{TOM} Ben's 2 apples were eaten. {HIS}", OTHER_OWNER + "'tom' and 'ben'"),
        (f"{TOM} He eats 2 apples. How many apples do Tom and Ann have?",
         OTHER_OWNER + "'tom' and 'tom&ann'"),
        (f"{TOM} 2 apples are given to him. {HIS}", "found one that names 'tom', too"),
        ("There are 5 apples in the basket. Tom takes 2 apples. How many apples does Tom have?",
         "looked for an amount that 'tom' has, and found one without an owner"),
    ],
)  # fmt: skip
def test_an_amount_and_its_change_have_the_owner_that_is_asked_about(text, said):
    assert said in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        f"{TOM} Ben eats 2 apples. {HE}",
        f"{TOM} Ben eats 2 of his apples. {HIS}",
        f"{TOM} Ann comes. She eats 2 apples. {HIS}",
        f"Tom smiles. He has 9 apples. Ben comes. He eats 2 apples. {HIS}",
        f"Tom is with Mary. She has 9 apples. She eats 2. {HIS}",
        f"{TOM} Tom gives 2 apples to Mary. How many apples does she have?",
        f"{TOM} He gives 2 apples to Mary, and she gives one apple back. {HIS}",
        "Ann has 3 apples. Ben has 7 apples. She eats 2. How many apples does Ben have?",
    ],
)
def test_pronouns_that_may_mean_more_than_one_are_refused(text):
    assert UNCLEAR in refusal(text)


@pytest.mark.parametrize(
    "change,found",
    [
        ("buys 2 apples for Ben", "'for Ben'"),
        ("buys 2 apples for ben", "'for ben'"),
        ("buys 2 apples for his sister", "'for his'"),
        ("brings 2 apples to Ben", "'to Ben'"),
        ("buys Ben 2 apples", "'Ben'"),
        ("buys ben 2 apples", "'ben'"),
        ("buys his sister 2 apples", "'his'"),
    ],
)
def test_what_is_bought_for_another_is_refused(change, found):
    assert ANOTHER + found in refusal(f"{TOM} He {change}. {HIS}")


@pytest.mark.parametrize(
    "told,said",
    [
        ("He was given 2 apples.", ANOTHER + "'was given'"),
        ("He loses 2 apples. He finds them again.", "and found 'finds them' without one"),
        ("He gives Ann 2 apples. Ann gives them back.", "and found 'back' without one"),
        ("He got 2 apples stolen.", ANOTHER + "'stolen'"),
        ("He saves 2 apples from being eaten.", "a known verb for each number"),
        ("He picks 2 apples.", "a known verb for each number"),
        ("He gets rid of 2 apples.", ANOTHER + "'rid'"),
        ("He steals 2 apples.", "and found 'tom' as the thief alone"),
        ("He loses 2 apples quickly and finds 1 apple again.", "one change of it of 'apple'"),
    ],
)
def test_changes_that_may_go_either_way_are_refused(told, said):
    assert said in refusal(f"{TOM} {told} {HIS}")


@pytest.mark.parametrize(
    "text,result",
    [
        (f"{TOM} He eats 2 apples. {HE}", 7),
        (f"{TOM} He had eaten 2 apples. {LEFT}", 7),
        (f"{TOM} Ben eats 2 of them. {HIS}", 7),
        (f"{TOM} Mary has 4 pears. Tom eats 2 apples. {HIS}", 7),
        (f"{TOM} Ann takes 2 apples from him. {HIS}", 7),
        (f"{TOM} A thief steals 2 of his apples. {HIS}", 7),
        (f"{TOM} Ann steals 2 apples from Tom. {HIS}", 7),
        ("There are 9 apples. Tom steals 2 apples. How many are left?", 7),
        (f"{TOM} 2 apples were stolen. {HIS}", 7),
        (f"{TOM} I take away 2 apples from Tom. {HIS}", 7),
        (f"{TOM} He gives Mary 2 apples. {HE}", 7),
        (f"{TOM} He gives 2 apples to Mary. {HIS}", 7),
        (f"{TOM} Ann gives him 2 apples. {HIS}", 11),
        (f"{TOM} If Tom eats 2 apples, how many apples will he have?", 7),
        (f"{TOM} Tomorrow he will eat 2 apples. How many apples will he have?", 7),
        (f"{TOM} He buys 2 apples. {HIS}", 11),
        (f"{TOM} He buys 2 apples for 9 dollars. {HIS}", 11),
        (f"{TOM} He gets 2 apples for his birthday. {HIS}", 11),
        (f"{TOM} He picks up 2 apples. {HE}", 11),
        (f"{TOM} He is eating 2 apples. {HE}", 7),
        (f"{TOM} 2 apples were eaten. {HE}", 7),
        (f"{TOM} He gives 2 apples back to Ann. {HIS}", 7),
        (f"{ME} I eat 2. {MY}", 3),
        (f"{ME} I eat 2. {LEFT}", 3),
        (f"{ME} Take away 2. {LEFT}", 3),
        (f"{ME} Tom eats 2 of my apples. {MY}", 3),
        (f"{ME} Tom takes 2 apples from me. {MY}", 3),
        (f"{ME} Tom gives me 2 apples. {MY}", 7),
        (f"{ME} I give him 2 apples. {MY}", 3),
        (f"{ME} I buy 2 apples from Ben. {MY}", 7),
        ("I have 9 apples and I eat 2, how many apples do I have?", 7),
        ("There are 9 apples. Tom eats 2 apples. How many are left?", 7),
        ("There are 9 apples in the box. Tom takes 2 out. How many apples are in the box?", 7),
        ("There are 9 apples on the table. 2 fall. How many apples are there?", 7),
        ("We have 9 apples. We eat 2. How many apples do we have?", 7),
        ("Tom and Ben have 9 apples. They eat 2. How many apples do they have?", 7),
        ("Tom, who has 9 apples, eats 2 apples. How many apples does Tom have?", 7),
        ("My brother has 9 apples. He eats 2 apples. How many apples does he have?", 7),
        ("A baker has 9 pies and sells 2. How many pies does the baker have left?", 7),
        ("tom has 9 apples. he eats 2 apples. how many apples does tom have?", 7),
        ("Will has 9 apples. Will eats 2 apples. How many apples does Will have?", 7),
        ("I have 9 cans of soda. I drink 2 cans of soda. How many cans of soda are left?", 7),
        ("Winter is almost here. 27 birds fly away. There were 41 birds. How many are left?", 14),
        ("I have (9) apples, and I eat 2! How many apples do I have?", 7),
        ("I have 1,000 apples. I eat 64. How many apples do I have?", 936),
        ("I have a hundred apples. I eat twenty-one. How many apples do I have?", 79),
        ("I have $9. I spend $2. How much money do I have?", 7),
    ],
)
def test_neighbors_are_read_with_their_values(text, result):
    assert read_story(text).result == result
