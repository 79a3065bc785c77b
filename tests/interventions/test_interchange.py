"""Interchange interventions equal edits of whole passes, and outcome labels are consistent."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from probes.errors import BatchError, ProbeError, SiteError
from probes.interventions.interchange import (
    interchange_intervention,
    run_interchange_pairs,
    with_residual,
)
from probes.interventions.interchange_outcomes import NUMBER_READOUT, OBJECT_READOUT
from probes.models.model import wrap
from probes.models.site import Site
from probes.prompts.catalog import list_patterns
from probes.prompts.interchange_pairs import BaseFilter, sample_interchange_pairs
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import tokenize_pairs
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
def pairs():
    return sample_interchange_pairs(FOX, COUNT, tokenizers=(fox("template").tokenizer,), seed=0)


@cache
def runs_of(kind):
    """Runs of a planted model, or of a random-init one with the same tokenizer."""
    return run_interchange_pairs(
        model(kind), pairs(), joined_roles={"all": ALL, "op+y": "op y", "end": "answer rest"}
    )


@cache
def model(kind):
    if kind not in KINDS:
        return fox(kind)
    words = fox("template").tokenizer
    return wrap(tiny_hf(kind, 0, vocab_size=len(words)), name=f"tiny {kind}", tokenizer=words)


@cache
def sources(objects):
    """Tokenized sources, followed by the answers of the bases."""
    sampled = getattr(pairs(), objects)
    bases = [pair.clean for pair in sampled]
    tokenizer = fox("template").tokenizer
    return tokenize(tokenizer, [pair.counterfactual for pair in sampled], answers_from=bases)


def hook_name(site, layers):
    kind = {"resid": "hook_resid_pre", "mlp": "hook_mlp_out"}.get(site.component, "attn.hook_z")
    if site.layer == layers:
        return f"blocks.{layers - 1}.hook_resid_post"
    return f"blocks.{site.layer}.{kind}"


def readout_logits(kind, objects=None):
    """Logits of bases or sources at the read-outs of the bases, without intervention."""
    batch, given = runs_of(kind).batch, sources(objects) if objects else runs_of(kind).batch
    logits = model(kind).logits(given.ids, given.mask)
    return logits.take_along_dim(batch.positions[..., None], dim=1)


def patched_by_hooks(kind, site, objects):
    """Read-out logits of the bases with one activation of the sources, by hooks."""
    net, batch, source, kept = model(kind), runs_of(kind).batch, sources(objects), []
    name = hook_name(site, net.shape.layers)
    with net.editing({name: lambda value: kept.append(value.clone())}):
        net.logits(source.ids, source.mask)
    roles = {"op+y": "op y", "all": ALL}.get(site.role, str(site.role)).split()
    swap = torch.stack([batch.role_mask(role) for role in roles]).any(0)[..., None]
    if isinstance(site.component, int):
        swap = swap[..., None] & (torch.arange(net.shape.heads) == site.component)[:, None]
    with net.editing({name: lambda value: torch.where(swap, kept[0], value)}):
        logits = net.logits(batch.ids, batch.mask)
    return logits.take_along_dim(batch.positions[..., None], dim=1)


def assert_agrees(found, row, logits, kind, atol=1e-5):
    """Compare all measures of one site with logits at the read-outs."""
    tokens = runs_of(kind).outcome_tokens
    for answer in (NUMBER_READOUT, OBJECT_READOUT):
        here, there = (logits[:, at].gather(1, tokens[answer]) for at in (answer, 1 - answer))
        torch.testing.assert_close(found.logits[answer][row], here, atol=atol, rtol=1e-5)
        torch.testing.assert_close(
            found.other_readout_logits[answer][row], there, atol=atol, rtol=1e-5
        )
        assert torch.equal(found.predicted_tokens[answer][row], logits[:, answer].argmax(-1))


# Interventions.


@pytest.mark.parametrize("objects", ["same", "other"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_equals_a_whole_pass_with_the_activation_replaced(kind, objects):
    sites = [OP, Site(0, "resid", "x"), Site(2, "resid", "op+y"), Site(3, "resid", "answer")]
    sites += [Site(0, "mlp", "op"), Site(2, "mlp", "answer"), Site(1, 2, "y")]
    found = interchange_intervention(runs_of(kind), sites, source_object=objects)
    assert found.site_names[:2] == ("L1.resid@op", "L0.resid@x")
    assert found.site_names[4:] == ("L0.MLP@op", "L2.MLP@answer", "L1.H2@y")
    assert found.source_object == objects
    assert found.model == f"tiny {kind}"
    for row, site in enumerate(sites):
        assert_agrees(found, row, patched_by_hooks(kind, site, objects), kind)


@pytest.mark.parametrize("objects", ["same", "other"])
@pytest.mark.parametrize("kind", [*KINDS, "template"])
def test_replacing_the_whole_input_of_a_layer_gives_the_source_run(kind, objects):
    sites = [Site(layer, "resid", "all") for layer in range(model(kind).shape.layers + 1)]
    found = interchange_intervention(runs_of(kind), sites, source_object=objects)
    for row in range(len(sites)):
        # A planted residual stream holds a constant of 1000: logits are less precise.
        assert_agrees(
            found, row, readout_logits(kind, objects), kind, atol=1e-5 if kind in KINDS else 1e-2
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_residual_affects_only_its_own_readout(kind):
    last = model(kind).shape.layers
    found = interchange_intervention(
        runs_of(kind), [Site(last, "resid", "answer"), Site(last, "resid", "op")]
    )
    base, source = readout_logits(kind), readout_logits(kind, "other")
    assert_agrees(
        found, 0, torch.stack([source[:, NUMBER_READOUT], base[:, OBJECT_READOUT]], 1), kind
    )
    assert_agrees(found, 1, base, kind)


@pytest.mark.parametrize("kind", [*KINDS, "template"])
def test_without_sites_the_clean_run_is_returned(kind):
    found = interchange_intervention(runs_of(kind), [])
    assert found.site_names == ("none",)
    assert_agrees(found, 0, readout_logits(kind), kind, atol=1e-5)


def test_source_object_selects_sources_about_the_same_or_another_object():
    thing = Site(0, "resid", "thing")
    same, other = (
        interchange_intervention(runs_of("template"), [thing], source_object=o).is_outcome(
            "thing", OBJECT_READOUT
        )
        for o in ("same", "other")
    )
    assert (same.mean(), other.mean()) == (0, 1)


def test_the_object_readout_follows_the_number_of_the_base():
    runs = runs_of("template")
    at = runs.batch.readout("noun").position[:, None]
    number = runs.batch.readout("number").answer
    assert torch.equal(runs.batch.ids.gather(1, at)[:, 0], number)
    for objects in ("same", "other"):
        assert torch.equal(runs.sources[objects].ids.gather(1, at)[:, 0], number)
        assert (tokenize_pairs(model("template").tokenizer, pairs().other).fully_aligned).all()
    # The sources' own numbers differ.
    assert all(p.changes_answer("number") for p in pairs().other)


# Outcomes.


def test_outcome_tokens_are_in_the_order_of_the_labels():
    runs, vocab = runs_of("template"), model("template").tokenizer.convert_tokens_to_ids
    for index in range(COUNT):
        wanted = [vocab(pairs().target_number(index, label)) for label in pairs().number_labels]
        assert runs.outcome_tokens[NUMBER_READOUT][index].tolist() == wanted
        nouns = dict(pairs().same[index].clean.outcomes)["noun"]
        assert runs.outcome_tokens[OBJECT_READOUT][index].tolist() == [
            vocab(noun) for noun in nouns
        ]


@pytest.mark.parametrize("kind", ["template", "rotated", "lookup", "llama"])
def test_the_outcome_is_the_label_of_the_most_likely_token(kind):
    runs = runs_of(kind)
    sites = [OP, Site(1, "resid", "op+y"), Site(0, "resid", "thing"), Site(2, "resid", "end")]
    found = interchange_intervention(runs, sites)
    for answer in (NUMBER_READOUT, OBJECT_READOUT):
        labels, tokens = found.labels[answer], found.predicted_tokens[answer]
        hits = [found.is_outcome(label, answer) for label in labels]
        assert (np.sum([*hits, found.is_outcome("other", answer)], axis=0) == 1).all()
        for place, hit in enumerate(hits):
            wanted = runs.outcome_tokens[answer][:, place].expand_as(tokens)
            assert np.array_equal(hit, (tokens == wanted).numpy())


def test_each_planted_variable_is_taken_at_its_site_and_no_other_is():
    sites = [OP, Site(1, "resid", "op+y"), Site(1, "resid", "x"), Site(1, "resid", "all")]
    found = interchange_intervention(runs_of("template"), sites)
    expected = ["operation", "operation + y", "x", "operation + x + y"]
    for row, label in enumerate(expected):
        assert found.is_outcome(label)[row].all()
        for variable in ("operation", "x", "y"):
            assert (found.takes_variable(variable)[row] == (variable in label.split(" + "))).all()
    assert found.is_outcome("base", OBJECT_READOUT)[:3].all()
    assert found.is_outcome("thing", OBJECT_READOUT)[3].all()


def test_a_copied_operand_is_not_a_variable():
    """The code of another noun changes nothing: the answer is x, not an operand of the source."""
    found = interchange_intervention(runs_of("rotated"), [OP])
    assert found.is_outcome("copies x").all()
    assert not found.takes_variable("x").any()
    assert (
        interchange_intervention(runs_of("rotated"), [OP], source_object="same")
        .is_outcome("operation")
        .all()
    )


def test_an_answer_without_a_label_is_other():
    runs = runs_of("lookup")
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
def test_proportions_and_table_count_the_outcomes(kind):
    sites = [OP, Site(0, "resid", "all")]
    found = interchange_intervention(runs_of(kind), sites)
    for site, row in (("L1.resid@op", 0), ("L0.resid@all", 1)):
        table = found.table(site)
        assert [*table.outcome] == [
            *pairs().number_labels,
            "other",
            *pairs().object_labels,
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


def test_a_logit_shift_is_relative_to_the_base_answer():
    found = interchange_intervention(runs_of("gpt2"), [OP, Site(0, "resid", "all")])
    for answer, labels in enumerate(found.labels):
        for place, label in enumerate(labels):
            for elsewhere, logits in ((False, found.logits), (True, found.other_readout_logits)):
                wanted = logits[answer][..., place] - logits[answer][..., 0]
                shift = found.logit_shift(label, answer, at_other_readout=elsewhere)
                assert np.array_equal(shift, wanted.numpy())
        assert not found.logit_shift("base", answer).any()


def test_the_verb_shifts_the_number_and_not_the_object():
    found, clean = (
        interchange_intervention(runs_of("template"), [OP]),
        interchange_intervention(runs_of("template"), []),
    )
    assert (found.logit_shift("operation") > 0).all()
    assert (clean.logit_shift("operation") < 0).all()
    assert np.allclose(
        found.logit_shift("thing", OBJECT_READOUT),
        clean.logit_shift("thing", OBJECT_READOUT),
        atol=1e-3,
    )
    # At the object's read-out, number logits do not change.
    moved = found.logit_shift("operation", at_other_readout=True) - clean.logit_shift(
        "operation", at_other_readout=True
    )
    assert np.allclose(moved, 0, atol=1e-3)


# Roles and states.


def test_roles_are_in_text_order_without_the_tail_and_joined_roles():
    wanted = "bos have x thing op y ask rest thing_asked answer reply_number"
    roles = runs_of("template").roles
    assert set(roles) == set(wanted.split())
    order = [role for role in roles if role != "rest"]
    assert order == [role for role in wanted.split() if role != "rest"]


def test_a_joined_role_has_the_positions_of_all_its_parts():
    where = runs_of("template").role_masks
    assert torch.equal(where["op+y"], where["op"] | where["y"])
    assert torch.equal(where["all"], runs_of("template").batch.mask)


@pytest.mark.parametrize("objects", [None, "same", "other"])
def test_states_belong_to_the_last_token_of_a_role(objects):
    batch = sources(objects) if objects else runs_of("llama").batch
    kept, net = {}, model("llama")
    names = [f"blocks.{layer}.hook_resid_pre" for layer in (0, 2)]
    edits = {name: lambda value, name=name: kept.update({name: value}) for name in names}
    with net.editing(edits):
        net.logits(batch.ids, batch.mask)
    for role in ("op", "ask", "rest", "op+y"):
        last = [int(runs_of("llama").role_masks[role][n].nonzero()[-1]) for n in range(COUNT)]
        for layer, name in zip((0, 2), names, strict=True):
            wanted = kept[name][torch.arange(COUNT), last]
            found = runs_of("llama").states(Site(layer, "resid", role), objects)
            torch.testing.assert_close(found, wanted)


def test_with_residual_replaces_one_layer_only():
    runs = runs_of("llama")
    sites = [OP, Site(2, "resid", "op"), Site(1, "mlp", "op")]
    modified = with_residual(runs, 1, runs.sources["other"].resid[1])
    found = interchange_intervention(runs, sites, source=modified)
    wanted, clean = interchange_intervention(runs, [OP]), interchange_intervention(runs, [])
    for answer in (NUMBER_READOUT, OBJECT_READOUT):
        assert torch.equal(found.logits[answer][0], wanted.logits[answer][0])
        assert torch.equal(found.logits[answer][1:], clean.logits[answer].expand(2, -1, -1))
    assert not torch.equal(wanted.logits[NUMBER_READOUT], clean.logits[NUMBER_READOUT])
    # The runs themselves are unchanged.
    assert torch.equal(
        interchange_intervention(runs, [OP], source=runs.clean).logits[0], clean.logits[0]
    )


def test_a_planted_state_with_opposite_sign_gives_the_other_operation():
    """Nothing but the operation changes."""
    planted, runs = planted_fox("template"), runs_of("template")
    states = runs.clean.resid[1].clone()
    states[..., list(planted.state)] *= -1
    found = interchange_intervention(runs, [OP], source=with_residual(runs, 1, states))
    assert found.is_outcome("operation").all()
    assert found.is_outcome("base", OBJECT_READOUT).all()


def test_hooks_are_removed_and_weights_unchanged():
    net = model("gpt2")
    runs_of("gpt2")  # The first pass adds permanent hooks.
    hooks, weights = hook_count(net), [p.clone() for p in net.bridge.parameters()]
    interchange_intervention(
        run_interchange_pairs(net, pairs().select(range(4))),
        [OP, Site(1, "mlp", "op"), Site(0, 1, "x")],
    )
    with pytest.raises(SiteError):
        interchange_intervention(runs_of("gpt2"), [OP, Site(9, "resid", "op")])
    assert hook_count(net) == hooks
    assert all(map(torch.equal, weights, net.bridge.parameters()))


def test_site_names_hold_layer_component_and_role():
    sites = [Site(2, "resid", "op+y"), Site(0, "mlp", "x"), Site(1, 0, "answer")]
    assert [str(site) for site in sites] == ["L2.resid@op+y", "L0.MLP@x", "L1.H0@answer"]


# Words of several tokens.


@pytest.mark.slow
def test_nouns_of_several_tokens_are_read_out_at_the_first_that_differs(shared_tokenizer):
    words = shared_tokenizer("gpt2")
    nouns = list_patterns()["take-away"].lexicon.words("noun")
    long = [noun for noun in nouns if len(words.tokenize(f" {noun}")) == 2]
    pattern = list_patterns()["take-away-told"]
    found = sample_interchange_pairs(
        pattern,
        6,
        tokenizers=(words,),
        seed=0,
        base_filter=BaseFilter(allowed_words={"thing": long}),
    )
    assert all(len(words.tokenize(f" {p.clean['thing']}")) == 2 for p in found.other)
    net = wrap(tiny_hf("gpt2", 0, vocab_size=len(words)), name="wide", tokenizer=words)
    parts = tokenize_pairs(words, found.other).clean.roles
    runs = run_interchange_pairs(net, found, joined_roles={"all": " ".join(parts)})
    nouns = runs.batch.readout("noun")
    # The first token distinguishes the outcomes.
    assert torch.equal(runs.batch.ids.gather(1, nouns.end[:, None] - 2)[:, 0], nouns.answer)
    assert torch.equal(nouns.end - nouns.position, torch.full((6,), 3))
    assert all(len(set(row)) == 2 for row in runs.outcome_tokens[OBJECT_READOUT].tolist())
    thing = Site(0, "resid", "thing")
    done = interchange_intervention(runs, [Site(0, "resid", "all"), thing])
    pairs = tokenize_pairs(words, found.other)
    whole = net.logits(pairs.counterfactual.ids, pairs.counterfactual.mask)
    seen = whole.take_along_dim(runs.batch.positions[..., None], dim=1)
    torch.testing.assert_close(
        done.logits[OBJECT_READOUT][0], seen[:, 1].gather(1, runs.outcome_tokens[OBJECT_READOUT])
    )
    # Both tokens are patched; states belong to the last.
    assert (runs.role_masks["thing"].sum(-1) == 2).all()
    at = runs.role_masks["thing"].int().cumsum(-1).argmax(-1)
    ids = torch.stack([runs.batch.ids[n, p] for n, p in enumerate(at)])
    assert [words.decode(i) for i in ids] == [
        words.decode(words.encode(f" {p.clean['thing']}")[-1]) for p in found.other
    ]
    torch.testing.assert_close(
        runs.states(thing), runs.clean.resid[0][torch.arange(6), at], atol=0, rtol=0
    )


# Errors.


def test_a_site_that_was_not_patched_or_does_not_exist_is_an_error():
    found = interchange_intervention(runs_of("template"), [OP])
    with pytest.raises(SiteError, match=r"L1\.resid@op"):
        found.site_index("L0.resid@op")
    with pytest.raises(SiteError, match=r"L0\.resid@op"):
        found.proportion("L0.resid@op", "operation")
    with pytest.raises(SiteError, match="verb"):
        interchange_intervention(runs_of("template"), [Site(1, "resid", "verb")])


def test_texts_longer_than_the_context_are_an_error():
    words = fox("template").tokenizer
    short = tiny_hf("llama", 0, vocab_size=len(words), max_position_embeddings=12)
    with pytest.raises(BatchError, match="takes 12"):
        run_interchange_pairs(wrap(short, name="short", tokenizer=words), pairs())


def test_states_of_a_role_that_some_prompts_lack_are_an_error(own):
    pattern = list_patterns()["take-away"]
    found = sample_interchange_pairs(pattern, 12, tokenizers=(own,), seed=0)
    assert 0 < sum("name" in dict(pair.clean.slots) for pair in found.same) < 12
    net = wrap(tiny_hf("llama", 0, vocab_size=len(own)), name="own", tokenizer=own)
    with pytest.raises(SiteError, match="'name'"):
        run_interchange_pairs(net, found).states(Site(0, "resid", "name"))


def test_states_of_an_unknown_role_are_an_error():
    with pytest.raises(SiteError, match="verb"):
        runs_of("template").states(Site(0, "resid", "verb"))


def test_states_outside_the_residual_stream_are_an_error():
    with pytest.raises(SiteError, match="give a 'resid' site"):
        runs_of("template").states(Site(1, "mlp", "op"))


def test_a_joined_role_with_an_unknown_part_is_an_error():
    with pytest.raises(SiteError, match="verb"):
        run_interchange_pairs(
            model("template"), pairs().select(range(2)), joined_roles={"both": "op verb"}
        )


@pytest.mark.parametrize("ask", ["is_outcome", "logit_shift"])
def test_an_unknown_label_is_an_error(ask):
    with pytest.raises(ProbeError, match="nothing"):
        getattr(interchange_intervention(runs_of("template"), [OP]), ask)("nothing")


@pytest.mark.parametrize("variable", ["thing", "z"])
def test_a_variable_without_a_number_label_is_an_error(variable):
    with pytest.raises(ProbeError, match=variable):
        interchange_intervention(runs_of("template"), [OP]).takes_variable(variable)


def test_predicted_tokens_are_exact_in_bfloat16():
    words = fox("template").tokenizer
    wide = tiny_hf("llama", 0, vocab_size=4096).to(torch.bfloat16)
    runs = run_interchange_pairs(wrap(wide, name="short floats", tokenizer=words), pairs())
    found = interchange_intervention(runs, [])
    assert math.isfinite(float(found.logits[0].float().sum()))
    assert torch.equal(
        found.predicted_tokens[NUMBER_READOUT][0], runs.clean.logits[:, NUMBER_READOUT].argmax(-1)
    )
