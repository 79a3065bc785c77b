"""Claims on planted models: each verdict is what was planted, for the reason planted."""

import gc
import json
import weakref
from dataclasses import replace
from functools import cache
from zlib import crc32

import pytest
import torch

from probes.claims import solved_items as solved_items_module
from probes.claims.plan import with_method
from probes.claims.result import ClaimsReports
from probes.claims.run import ClaimSettings, evaluate_claims
from probes.errors import GateError, PatternError, ProbeError
from probes.models.model import load, random_init
from probes.observe.behavior import Behavior
from probes.testing.planted_patterns import planted_fox
from probes.testing.tiny_models import hook_count
from probes.viz.reports.claims import claims_page


@cache
def fox(kind="template"):
    return planted_fox(kind)


@cache
def report(kind):
    return evaluate_claims(fox(kind).model, fox(kind).pattern, ClaimSettings(bases=40, nulls=1))


def against(kind, claim):
    """The ids of the deciding tests that failed."""
    return [t.id for t in report(kind).verdict(claim).tests if t.is_deciding and t.passed is False]


# What is refused, and says what to do.


def test_a_model_without_the_behavior_is_refused_with_what_to_do():
    null = random_init(fox().model, seed=0)
    with pytest.raises(GateError, match="choose a model or a pattern whose gate is open"):
        evaluate_claims(null, fox().pattern, ClaimSettings(bases=8, nulls=0))


@pytest.mark.slow
def test_outcomes_that_collide_are_refused_before_anything_is_tested():
    """From 2 to 6 there are no two sums of which all mixtures differ."""
    pattern = fox().pattern
    narrow = replace(pattern, lexicon=replace(pattern.lexicon, number_range=(0, 6)))
    with pytest.raises(PatternError):
        evaluate_claims(fox().model, narrow, ClaimSettings(bases=8, nulls=0))


# The verdicts.


@pytest.mark.slow
def test_the_template_holds_by_every_deciding_test():
    for claim in ("H1a", "H2", "H3"):
        found = report("template").verdict(claim)
        assert found.label == "holds", found.reason
        assert all(test.passed for test in found.tests if test.is_deciding)
    assert (
        report("template").direction_comparison.other_direction.value,
        report("template").subspace_search.min_dimensions,
    ) == (1, 1)


@pytest.mark.slow
def test_operation_and_operands_that_meet_in_the_last_block_fail_to_meet_before_it():
    verdict = report("template").verdict("H1b")
    assert verdict.label == "fails"
    assert report("template").joint_site.all_variables.value == 0
    # A site that gives one of the three is not enough.
    assert report("template").hotspots.hotspot("y").same_object.value == 1


@pytest.mark.slow
def test_operation_and_operands_meet_where_the_operation_can_also_be_changed_alone():
    verdict = report("joint").verdict("H1b")
    assert (verdict.label, str(report("joint").joint_site.site)) == ("holds", "L1.resid@answer")
    assert report("joint").joint_site.operation_alone.value == 1
    # The state has the numbers as well, so that no site has the operation alone.
    assert against("joint", "H1a")[0] == "site_operation"


@pytest.mark.slow
def test_a_state_for_each_verb_fails_by_every_pair_of_unseen_verbs():
    assert report("lexical").verdict("H1a").label == "fails"
    assert against("lexical", "H1a") == [f"unseen_verbs_{n}" for n in range(1, 7)]


@pytest.mark.slow
def test_one_pair_of_verbs_of_six_without_the_shared_state_fails_by_that_pair():
    assert report("mixed").verdict("H1a").label == "fails"
    assert against("mixed", "H1a") == ["unseen_verbs_6"]
    by_pair = report("mixed").unseen_verbs.by_pair
    assert [estimate.value for estimate in by_pair.values()] == [1, 1, 1, 1, 1, 0]
    assert [*by_pair][-1] == "waste / gather"


@pytest.mark.slow
def test_a_table_fails_by_sums_that_it_lacks():
    assert report("lookup").gates[0].state == "partial"
    assert report("lookup").verdict("H1a").label == "fails"
    assert against("lookup", "H1a") == ["untrained_cells"]


@pytest.mark.slow
def test_a_code_for_each_noun_fails_by_other_objects_and_is_the_same_up_to_a_rotation():
    assert report("rotated").verdict("H1a").label == "fails"
    assert "same_object" in against("rotated", "H1a")
    found = report("rotated").verdict("H3")
    assert (found.label, "up to a rotation" in found.reason) == ("fails", True)
    aligned = report("rotated").direction_comparison
    assert aligned.other_direction.high < 0.1
    assert aligned.rotated_direction.low > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["template", "lexical", "mixed", "lookup", "rotated", "joint"])
def test_a_model_without_provenance_has_no_base_model_and_no_series(kind):
    assert report(kind).verdict("H5").label == "cannot tell"
    found = report(kind).verdict("H4")
    assert found.label == "cannot tell"
    assert "no base model" in found.tests[0].meaning_if_failed
    assert (
        report(kind).base_comparison,
        report(kind).two_object_dissociation,
        report(kind).binding,
    ) == (None, None, ())


# What it leaves behind.


@pytest.mark.slow
def test_claims_are_json_and_are_saved_whole(tmp_path):
    found = report("template")
    numbers = found.to_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == json.loads(json.dumps(numbers))
    assert [v["claim"] for v in numbers["verdicts"]] == ["H1a", "H1b", "H2", "H3", "H4", "H5"]
    path = tmp_path / "claims.json"
    path.write_text("x" * 10_000_000)
    found.save(path)
    # A file that was longer leaves nothing behind.
    assert "template" in json.dumps(json.loads(path.read_text()))
    assert [p.name for p in tmp_path.iterdir()] == ["claims.json"]


@pytest.mark.slow
def test_claims_leave_the_random_state_the_hooks_and_the_weights_unchanged():
    model = planted_fox("template").model
    weights = [weight.clone() for weight in model.bridge.parameters()]
    rng_state, hooks = torch.get_rng_state(), hook_count(model)
    first = evaluate_claims(model, fox().pattern, ClaimSettings(bases=10, nulls=1))
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert hook_count(model) == hooks
    assert all(map(torch.equal, weights, model.bridge.parameters()))
    assert first.verdict("H1a").claim == "H1a"
    with pytest.raises(ProbeError, match="no claim 'H9'"):
        first.verdict("H9")


# Large models: a screen, and the items that a model solves.


@pytest.mark.slow
def test_a_screened_run_says_so_and_has_the_verdicts_of_the_whole_one():
    whole = report("template")
    settings = ClaimSettings(bases=40, nulls=5, screen="always", null="permuted")
    found = evaluate_claims(fox().model, fox().pattern, settings)
    protocol = dict(found.protocol)
    assert "chosen by a screen" in protocol["sites"]
    assert "answers of other bases" in protocol["null"]
    assert any(line.startswith("Screen: ") and "Spearman" in line for line in found.summary())
    assert not any(line.startswith("Screen: ") for line in whole.summary())
    assert "a dash is a site that was not" in claims_page(ClaimsReports((found,))).body
    assert [v.label for v in found.verdicts] == [v.label for v in whole.verdicts]


def test_small_models_are_measured_whole_and_large_ones_are_screened(monkeypatch):
    own = with_method(fox().model, fox().pattern, ClaimSettings())
    assert (own.screen, own.null) == ("never", "random-init")
    monkeypatch.setattr("probes.comparison.setup.cost.MAX_OPERATIONS", 1.0)
    large = with_method(fox().model, fox().pattern, ClaimSettings())
    assert (large.screen, large.null) == ("always", "permuted")
    asked = with_method(fox().model, fox().pattern, ClaimSettings(null="random-init"))
    assert (asked.screen, asked.null) == ("always", "random-init")


def behavior_that_solves(monkeypatch, solves):
    """Let a model be right in the questions for which `solves` is true."""

    def answer(model, questions):
        right = torch.tensor([[solves(one), True] for one in questions])
        predicted = torch.zeros(right.shape, dtype=torch.long)
        return Behavior(model.name, ("number", "noun"), right, right.float(), predicted, right)

    monkeypatch.setattr(solved_items_module, "answer_questions", answer)


def test_items_that_a_model_solves_are_those_that_are_tested(monkeypatch):
    name = fox().pattern.templates[0].name
    behavior_that_solves(monkeypatch, lambda one: one.template == name)
    found = solved_items_module.solved_items(fox().model, fox().pattern, seed=0)
    assert [template.name for template in found.pattern.templates] == [name]
    assert found.pattern.lexicon.verbs == fox().pattern.lexicon.verbs
    assert [gate.state for gate in found.gates] == ["open", "open"]
    assert found.text.startswith("1 of 2 sentence templates and 6 of 6 pairs of verbs")


def test_a_model_that_solves_no_item_has_no_part_of_a_pattern(monkeypatch):
    behavior_that_solves(monkeypatch, lambda one: crc32(one.text.encode()) % 2 == 0)
    assert solved_items_module.solved_items(fox().model, fox().pattern, seed=0) is None


@pytest.mark.slow
def test_a_report_without_its_runs_lets_go_of_the_model():
    model = load("distilled")
    kept = weakref.ref(model)
    report = evaluate_claims(model, settings=ClaimSettings(bases=40, nulls=1))
    summary = report.summary()
    report = replace(report, hotspots=report.hotspots.without_runs())
    del model
    gc.collect()
    assert kept() is None
    assert report.summary() == summary
