"""Exchanges are what an edit of a whole pass gives, and what they are said to mean adds up."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from probes.errors import BatchError, ProbeError, SiteError
from probes.interventions.interchange import (
    NUMBER_READOUT,
    OBJECT_READOUT,
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.models.model import wrap
from probes.models.site import Site
from probes.prompts.batch import tokenize
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.pair_batch import tokenize_pairs
from probes.testing.planted_patterns import fox_pattern, planted_fox
from probes.testing.tiny_models import KINDS, hook_count, tiny_hf

FOX = fox_pattern()
OP = Site(1, "resid", "op")
ALL = "bos have x thing op y ask rest thing_asked answer reply_number reply_noun"
COUNT = 24


@cache
def fox(kind):
    return planted_fox(kind).model


@cache
def drawn():
    return sample_interchange_pairs(FOX, COUNT, tokenizers=(fox("template").tokenizer,), seed=0)


@cache
def crossed(kind):
    """The runs of a planted model, or of a random one that reads the same words."""
    return run_interchange_pairs(
        model(kind), drawn(), joined_roles={"all": ALL, "op+y": "op y", "end": "answer rest"}
    )


@cache
def model(kind):
    if kind not in KINDS:
        return fox(kind)
    words = fox("template").tokenizer
    return wrap(tiny_hf(kind, 0, vocab_size=len(words)), name=f"tiny {kind}", tokenizer=words)


@cache
def sources(objects):
    """The sources as they are read: behind the answers of the bases."""
    pairs = getattr(drawn(), objects)
    bases = [pair.clean for pair in pairs]
    tokenizer = fox("template").tokenizer
    return tokenize(tokenizer, [pair.counterfactual for pair in pairs], answers_from=bases)


def point(cell, layers):
    kind = {"resid": "hook_resid_pre", "mlp": "hook_mlp_out"}.get(cell.component, "attn.hook_z")
    if cell.layer == layers:
        return f"blocks.{layers - 1}.hook_resid_post"
    return f"blocks.{cell.layer}.{kind}"


def plain(kind, objects=None):
    """Run bases or sources as they are, and return the logits where the bases are read."""
    batch, given = crossed(kind).batch, sources(objects) if objects else crossed(kind).batch
    logits = model(kind).logits(given.ids, given.mask)
    return logits.take_along_dim(batch.positions[..., None], dim=1)


def oracle(kind, cell, objects):
    """Take one activation of the sources by a hook, and put it into the bases by another."""
    run, batch, theirs, kept = model(kind), crossed(kind).batch, sources(objects), []
    name = point(cell, run.shape.layers)
    with run.editing({name: lambda value: kept.append(value.clone())}):
        run.logits(theirs.ids, theirs.mask)
    roles = {"op+y": "op y", "all": ALL}.get(cell.role, str(cell.role)).split()
    swap = torch.stack([batch.role_mask(role) for role in roles]).any(0)[..., None]
    if isinstance(cell.component, int):
        swap = swap[..., None] & (torch.arange(run.shape.heads) == cell.component)[:, None]
    with run.editing({name: lambda value: torch.where(swap, kept[0], value)}):
        logits = run.logits(batch.ids, batch.mask)
    return logits.take_along_dim(batch.positions[..., None], dim=1)


def agrees(found, row, logits, kind, atol=1e-5):
    """Compare all that was measured of one site with logits at the read-outs."""
    tokens = crossed(kind).outcome_tokens
    for answer in (NUMBER_READOUT, OBJECT_READOUT):
        here, there = (logits[:, at].gather(1, tokens[answer]) for at in (answer, 1 - answer))
        torch.testing.assert_close(found.logits[answer][row], here, atol=atol, rtol=1e-5)
        torch.testing.assert_close(
            found.other_readout_logits[answer][row], there, atol=atol, rtol=1e-5
        )
        assert torch.equal(found.predicted_tokens[answer][row], logits[:, answer].argmax(-1))


# What an exchange is.


@pytest.mark.parametrize("objects", ["same", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exchange_equals_a_whole_pass_with_the_activation_replaced(kind, objects):
    cells = [OP, Site(0, "resid", "x"), Site(2, "resid", "op+y"), Site(3, "resid", "answer")]
    cells += [Site(0, "mlp", "op"), Site(2, "mlp", "answer"), Site(1, 2, "y")]
    found = interchange_intervention(crossed(kind), cells, source_object=objects)
    assert found.site_names[:2] == ("L1.resid@op", "L0.resid@x")
    assert found.site_names[4:] == ("L0.MLP@op", "L2.MLP@answer", "L1.H2@y")
    assert found.source_object == objects
    assert found.model == f"tiny {kind}"
    for row, cell in enumerate(cells):
        agrees(found, row, oracle(kind, cell, objects), kind)


@pytest.mark.parametrize("objects", ["same", "other"])
@pytest.mark.parametrize("kind", [*KINDS, "template"])
def test_to_exchange_all_that_a_layer_reads_is_to_run_the_source(kind, objects):
    cells = [Site(layer, "resid", "all") for layer in range(model(kind).shape.layers + 1)]
    found = interchange_intervention(crossed(kind), cells, source_object=objects)
    for row in range(len(cells)):
        # A planted model holds a constant of 1000: what is left of a logit is coarser.
        agrees(found, row, plain(kind, objects), kind, atol=1e-5 if kind in KINDS else 1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_residual_is_read_where_it_stands_and_nowhere_else(kind):
    last = model(kind).shape.layers
    found = interchange_intervention(
        crossed(kind), [Site(last, "resid", "answer"), Site(last, "resid", "op")]
    )
    base, source = plain(kind), plain(kind, "other")
    agrees(found, 0, torch.stack([source[:, NUMBER_READOUT], base[:, OBJECT_READOUT]], 1), kind)
    agrees(found, 1, base, kind)


@pytest.mark.parametrize("kind", [*KINDS, "template"])
def test_with_no_cells_it_is_the_clean_run(kind):
    found = interchange_intervention(crossed(kind), [])
    assert found.site_names == ("none",)
    agrees(found, 0, plain(kind), kind, atol=1e-5)


def test_sources_about_one_object_and_another_are_told_apart():
    thing = Site(0, "resid", "thing")
    same, other = (
        interchange_intervention(crossed("template"), [thing], source_object=o).is_outcome(
            "thing", OBJECT_READOUT
        )
        for o in ("same", "other")
    )
    assert (same.mean(), other.mean()) == (0, 1)


def test_the_noun_is_read_behind_the_number_of_the_base():
    runs = crossed("template")
    at = runs.batch.readout("noun").position[:, None]
    said = runs.batch.ids.gather(1, at)[:, 0]
    words = runs.batch.readout("number").answer
    assert torch.equal(said, words)
    for objects in ("same", "other"):
        assert torch.equal(runs.sources[objects].ids.gather(1, at)[:, 0], words)
        assert (tokenize_pairs(model("template").tokenizer, drawn().other).fully_aligned).all()
    # The sources' own numbers differ, so this is no accident.
    assert all(p.changes_answer("number") for p in drawn().other)


# What an answer means.


def test_the_tokens_of_the_outcomes_stand_in_the_order_of_the_labels():
    runs, vocab = crossed("template"), model("template").tokenizer.convert_tokens_to_ids
    for index in range(COUNT):
        wanted = [vocab(drawn().target_number(index, label)) for label in drawn().number_labels]
        assert runs.outcome_tokens[NUMBER_READOUT][index].tolist() == wanted
        nouns = dict(drawn().same[index].clean.outcomes)["noun"]
        assert runs.outcome_tokens[OBJECT_READOUT][index].tolist() == [
            vocab(noun) for noun in nouns
        ]


@pytest.mark.parametrize("kind", ["template", "rotated", "lookup", "llama"])
def test_what_is_said_is_the_likeliest_token_by_its_label(kind):
    runs = crossed(kind)
    cells = [OP, Site(1, "resid", "op+y"), Site(0, "resid", "thing"), Site(2, "resid", "end")]
    found = interchange_intervention(runs, cells)
    for answer in (NUMBER_READOUT, OBJECT_READOUT):
        labels, tokens = found.labels[answer], found.predicted_tokens[answer]
        hits = [found.is_outcome(label, answer) for label in labels]
        assert (np.sum([*hits, found.is_outcome("other", answer)], axis=0) == 1).all()
        for place, hit in enumerate(hits):
            wanted = runs.outcome_tokens[answer][:, place].expand_as(tokens)
            assert np.array_equal(hit, (tokens == wanted).numpy())


def test_the_planted_operation_is_taken_up_at_the_verb_and_nothing_else_is():
    cells = [OP, Site(1, "resid", "op+y"), Site(1, "resid", "x"), Site(1, "resid", "all")]
    found = interchange_intervention(crossed("template"), cells)
    says = ["operation", "operation + y", "x", "operation + x + y"]
    for row, label in enumerate(says):
        assert found.is_outcome(label)[row].all()
        for variable in ("operation", "x", "y"):
            assert (found.takes_variable(variable)[row] == (variable in label.split(" + "))).all()
    assert found.is_outcome("base", OBJECT_READOUT)[:3].all()
    assert found.is_outcome("thing", OBJECT_READOUT)[3].all()


def test_copies_are_not_taken_for_variables():
    """A code of another noun adds nothing to x: the answer is x, which is no operand of theirs."""
    found = interchange_intervention(crossed("rotated"), [OP])
    assert found.is_outcome("copies x").all()
    assert not found.takes_variable("x").any()
    assert (
        interchange_intervention(crossed("rotated"), [OP], source_object="same")
        .is_outcome("operation")
        .all()
    )


def test_an_answer_that_nobody_foresaw_is_other():
    runs = crossed("lookup")
    many = model("lookup").tokenizer.convert_tokens_to_ids("many")
    found = interchange_intervention(runs, [OP])
    assert found.is_outcome("other").any()
    assert np.array_equal(
        found.is_outcome("other"), (found.predicted_tokens[NUMBER_READOUT] == many).numpy()
    )
    assert np.array_equal(
        found.outcome_index[NUMBER_READOUT].numpy() == -1, found.is_outcome("other")
    )


@pytest.mark.parametrize("kind", ["lookup", "gpt2"])
def test_shares_and_table_count_what_is_said(kind):
    cells = [OP, Site(0, "resid", "all")]
    found = interchange_intervention(crossed(kind), cells)
    for site, row in (("L1.resid@op", 0), ("L0.resid@all", 1)):
        table = found.table(site)
        assert [*table.outcome] == [
            *drawn().number_labels,
            "other",
            *drawn().object_labels,
            "other",
        ]
        assert table.groupby("answer").fraction.sum().to_dict() == pytest.approx(
            {"number": 1, "noun": 1}
        )
        for answer, name in ((NUMBER_READOUT, "number"), (OBJECT_READOUT, "noun")):
            for _, line in table[table.answer == name].iterrows():
                assert line.fraction == found.is_outcome(line.outcome, answer)[row].mean()
                assert 0 <= line.low <= line.fraction <= line.high <= 1
    assert found.site_index("L0.resid@all") == 1


def test_a_pull_is_a_difference_of_logits_from_that_of_the_base():
    found = interchange_intervention(crossed("gpt2"), [OP, Site(0, "resid", "all")])
    for answer, labels in enumerate(found.labels):
        for place, label in enumerate(labels):
            for elsewhere, logits in ((False, found.logits), (True, found.other_readout_logits)):
                wanted = logits[answer][..., place] - logits[answer][..., 0]
                pull = found.logit_shift(label, answer, at_other_readout=elsewhere)
                assert np.array_equal(pull, wanted.numpy())
        assert not found.logit_shift("base", answer).any()


def test_the_verb_pulls_the_number_and_not_the_noun():
    found, clean = (
        interchange_intervention(crossed("template"), [OP]),
        interchange_intervention(crossed("template"), []),
    )
    assert (found.logit_shift("operation") > 0).all()
    assert (clean.logit_shift("operation") < 0).all()
    assert np.allclose(
        found.logit_shift("thing", OBJECT_READOUT),
        clean.logit_shift("thing", OBJECT_READOUT),
        atol=1e-3,
    )
    # Where the noun is read, no number comes to the fore.
    moved = found.logit_shift("operation", at_other_readout=True) - clean.logit_shift(
        "operation", at_other_readout=True
    )
    assert np.allclose(moved, 0, atol=1e-3)


# Roles and states.


def test_roles_stand_in_the_order_of_the_text_without_the_tail_and_without_joined_ones():
    wanted = "bos have x thing op y ask rest thing_asked answer reply_number"
    roles = crossed("template").roles
    assert set(roles) == set(wanted.split())
    order = [role for role in roles if role != "rest"]
    assert order == [role for role in wanted.split() if role != "rest"]


def test_joined_roles_are_the_positions_of_all_their_parts():
    where = crossed("template").role_masks
    assert torch.equal(where["op+y"], where["op"] | where["y"])
    assert torch.equal(where["all"], crossed("template").batch.mask)


@pytest.mark.parametrize("objects", [None, "same", "other"])
def test_states_are_those_of_the_last_token_of_a_role(objects):
    batch = sources(objects) if objects else crossed("llama").batch
    kept, run = {}, model("llama")
    names = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 2)]
    edits = {name: lambda value, name=name: kept.update({name: value}) for name in names}
    with run.editing(edits):
        run.logits(batch.ids, batch.mask)
    for role in ("op", "ask", "rest", "op+y"):
        last = [int(crossed("llama").role_masks[role][n].nonzero()[-1]) for n in range(COUNT)]
        for layer, name in zip((0, 2), names, strict=True):
            wanted = kept[name][torch.arange(COUNT), last]
            found = crossed("llama").states(Site(layer, "resid", role), objects)
            torch.testing.assert_close(found, wanted)


def test_states_put_in_by_hand_are_those_of_the_source_and_only_in_their_layer():
    runs = crossed("llama")
    cells = [OP, Site(2, "resid", "op"), Site(1, "mlp", "op")]
    made = with_residual(runs, 1, runs.sources["other"].resid[1])
    found = interchange_intervention(runs, cells, source=made)
    wanted, clean = interchange_intervention(runs, [OP]), interchange_intervention(runs, [])
    for answer in (NUMBER_READOUT, OBJECT_READOUT):
        assert torch.equal(found.logits[answer][0], wanted.logits[answer][0])
        assert torch.equal(found.logits[answer][1:], clean.logits[answer].expand(2, -1, -1))
    assert not torch.equal(wanted.logits[NUMBER_READOUT], clean.logits[NUMBER_READOUT])
    # Neither the runs nor what was handed over have changed.
    assert torch.equal(
        interchange_intervention(runs, [OP], source=runs.clean).logits[0], clean.logits[0]
    )


def test_a_state_set_by_hand_says_what_the_direction_says():
    """The sign of the planted state turned around: the other operation, and nothing else."""
    planted, runs = planted_fox("template"), crossed("template")
    states = runs.clean.resid[1].clone()
    states[..., list(planted.state)] *= -1
    found = interchange_intervention(runs, [OP], source=with_residual(runs, 1, states))
    assert found.is_outcome("operation").all()
    assert found.is_outcome("base", OBJECT_READOUT).all()


def test_nothing_is_left_hooked_and_no_weight_is_changed():
    run = model("gpt2")
    crossed("gpt2")  # A block wires itself at its first pass.
    hooks, weights = hook_count(run), [p.clone() for p in run.bridge.parameters()]
    interchange_intervention(
        run_interchange_pairs(run, drawn().select(range(4))),
        [OP, Site(1, "mlp", "op"), Site(0, 1, "x")],
    )
    with pytest.raises(SiteError):
        interchange_intervention(crossed("gpt2"), [OP, Site(9, "resid", "op")])
    assert hook_count(run) == hooks
    assert all(map(torch.equal, weights, run.bridge.parameters()))


def test_names_of_sites_say_layer_component_and_role():
    cells = [Site(2, "resid", "op+y"), Site(0, "mlp", "x"), Site(1, 0, "answer")]
    assert [str(cell) for cell in cells] == ["L2.resid@op+y", "L0.MLP@x", "L1.H0@answer"]


# Words of many tokens.


@pytest.mark.slow
def test_nouns_of_many_tokens_are_read_at_the_first_that_differs(shared_tokenizer):
    words = shared_tokenizer("gpt2")
    nouns = list_patterns()["take-away"].lexicon.words("noun")
    long = [noun for noun in nouns if len(words.tokenize(f" {noun}")) == 2]
    pattern = list_patterns()["take-away-told"]
    found = sample_interchange_pairs(
        pattern, 6, tokenizers=(words,), seed=0, allowed_words={"thing": long}
    )
    assert all(len(words.tokenize(f" {p.clean['thing']}")) == 2 for p in found.other)
    run = wrap(tiny_hf("gpt2", 0, vocab_size=len(words)), name="wide", tokenizer=words)
    parts = tokenize_pairs(words, found.other).clean.roles
    runs = run_interchange_pairs(run, found, joined_roles={"all": " ".join(parts)})
    nouns = runs.batch.readout("noun")
    # The outcomes are told apart by the first token, which stands behind the number.
    assert torch.equal(runs.batch.ids.gather(1, nouns.end[:, None] - 2)[:, 0], nouns.answer)
    assert torch.equal(nouns.end - nouns.position, torch.full((6,), 3))
    assert all(len(set(row)) == 2 for row in runs.outcome_tokens[OBJECT_READOUT].tolist())
    thing = Site(0, "resid", "thing")
    done = interchange_intervention(runs, [Site(0, "resid", "all"), thing])
    pairs = tokenize_pairs(words, found.other)
    whole = run.logits(pairs.counterfactual.ids, pairs.counterfactual.mask)
    seen = whole.take_along_dim(runs.batch.positions[..., None], dim=1)
    torch.testing.assert_close(
        done.logits[OBJECT_READOUT][0], seen[:, 1].gather(1, runs.outcome_tokens[OBJECT_READOUT])
    )
    # Both tokens of the noun are put in, and the last is the one whose state is given.
    assert (runs.role_masks["thing"].sum(-1) == 2).all()
    at = runs.role_masks["thing"].int().cumsum(-1).argmax(-1)
    ids = torch.stack([runs.batch.ids[n, p] for n, p in enumerate(at)])
    assert [words.decode(i) for i in ids] == [
        words.decode(words.encode(f" {p.clean['thing']}")[-1]) for p in found.other
    ]
    torch.testing.assert_close(
        runs.states(thing), runs.clean.resid[0][torch.arange(6), at], atol=0, rtol=0
    )


# What is refused.


def test_a_site_that_was_not_patched_or_does_not_exist_is_refused():
    found = interchange_intervention(crossed("template"), [OP])
    with pytest.raises(SiteError, match=r"L1\.resid@op"):
        found.site_index("L0.resid@op")
    with pytest.raises(SiteError, match=r"L0\.resid@op"):
        found.proportion("L0.resid@op", "operation")
    with pytest.raises(SiteError, match="verb"):
        interchange_intervention(crossed("template"), [Site(1, "resid", "verb")])


def test_texts_that_are_longer_than_the_model_takes_are_refused():
    words = fox("template").tokenizer
    short = tiny_hf("llama", 0, vocab_size=len(words), max_position_embeddings=12)
    with pytest.raises(BatchError, match="takes 12"):
        run_interchange_pairs(wrap(short, name="short", tokenizer=words), drawn())


def test_states_of_a_role_that_some_prompts_lack_are_refused(own):
    pattern = list_patterns()["take-away"]
    found = sample_interchange_pairs(pattern, 12, tokenizers=(own,), seed=0)
    assert 0 < sum("name" in dict(pair.clean.slots) for pair in found.same) < 12
    run = wrap(tiny_hf("llama", 0, vocab_size=len(own)), name="own", tokenizer=own)
    with pytest.raises(SiteError, match="'name'"):
        run_interchange_pairs(run, found).states(Site(0, "resid", "name"))


def test_states_of_a_role_that_no_prompt_has_are_refused():
    with pytest.raises(SiteError, match="verb"):
        crossed("template").states(Site(0, "resid", "verb"))


def test_states_of_a_component_that_is_not_kept_are_refused_or_its_own():
    resid = crossed("template").states(OP)
    try:
        written = crossed("template").states(Site(1, "mlp", "op"))
    except SiteError:
        return
    assert not torch.equal(written, resid)


def test_a_joined_role_with_an_unknown_part_is_refused():
    with pytest.raises(SiteError, match="verb"):
        run_interchange_pairs(
            model("template"), drawn().select(range(2)), joined_roles={"both": "op verb"}
        )


@pytest.mark.parametrize("ask", ["is_outcome", "logit_shift"])
def test_a_label_that_is_not_there_is_refused_by_name(ask):
    with pytest.raises(ProbeError, match="nothing"):
        getattr(interchange_intervention(crossed("template"), [OP]), ask)("nothing")


@pytest.mark.parametrize("variable", ["thing", "z"])
def test_a_variable_that_numbers_do_not_tell_is_refused(variable):
    with pytest.raises(ProbeError, match=variable):
        interchange_intervention(crossed("template"), [OP]).takes_variable(variable)


def test_tokens_are_exact_in_short_floats_too():
    words = fox("template").tokenizer
    wide = tiny_hf("llama", 0, vocab_size=4096).to(torch.bfloat16)
    runs = run_interchange_pairs(wrap(wide, name="short floats", tokenizer=words), drawn())
    found = interchange_intervention(runs, [])
    assert math.isfinite(float(found.logits[0].float().sum()))
    assert torch.equal(
        found.predicted_tokens[NUMBER_READOUT][0], runs.clean.logits[:, NUMBER_READOUT].argmax(-1)
    )
