"""Attribution patching is the slope of exact patching, and equals it where nothing is curved."""

import pytest
import torch

from probes.errors import SiteError
from probes.interventions.attribution_patching import attribution_patching
from probes.interventions.screening.patching import ExactCells, screened_patching
from probes.interventions.sweep import activation_patching
from probes.models.model import wrap
from probes.observe.activations import capture
from probes.prompts.catalog import pattern
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.tiny_models import hook_count, tiny, tiny_hf

KINDS = ("heads", "mlps", "resid")
NAMES = {"H": "z", "M": "mlp_out", "r": "resid"}


def pairs_of(own, contrast, count=5):
    take = pattern("take-away")
    return tokenize_pairs(own, sample_pairs(take, contrast, count, tokenizers=(own,), seed=1))


@pytest.fixture(scope="module")
def model(own):
    return tiny("llama-gqa", vocab_size=len(own))


@pytest.fixture(scope="module")
def linear(own):
    """Uniform attention, no MLP, and a coordinate so large that every norm is constant."""
    hf_model = tiny_hf("llama", 0, vocab_size=len(own))
    with torch.no_grad():
        hf_model.model.embed_tokens.weight[:, 0] = 1e3
        readers = [hf_model.lm_head]
        for layer in hf_model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight[0] = 0
            readers.append(layer.self_attn.v_proj)
        for reader in readers:
            reader.weight[:, 0] = 0
            reader.weight.mul_(1e3 / hf_model.config.hidden_size**0.5)
        hf_model.lm_head.weight.mul_(100)
    return wrap(hf_model, name="linear", tokenizer=own)


def step_by_hand(model, pairs, component, role, size):
    """Change of each logit difference by a small step of a component towards its other value."""
    layer, kind = int(component[1]), component.split(".")[1]
    name, head = NAMES[kind[0]], int(kind[1:]) if kind[0] == "H" else None
    theirs = capture(model, pairs.counterfactual, (name,))[name][layer]
    theirs = theirs[torch.arange(len(pairs))[:, None], pairs.source_positions]
    theirs = theirs if head is None else theirs[:, :, head]
    mask = pairs.role_mask(role)[..., None]

    def leads(step):
        edit = {component: lambda value: torch.where(mask, value.lerp(theirs, step), value)}
        with model.editing(edit):
            logits = model.logits(pairs.clean.ids, pairs.clean.mask).double()
        at, rows = pairs.clean.positions, torch.arange(len(pairs))
        both = zip(pairs.clean.readouts, pairs.counterfactual.readouts, strict=True)
        found = []
        for k, (mine, other) in enumerate(both):
            here = logits[rows, at[:, k]]
            foils = other.answer[:, None]
            if bool((mine.answer == other.answer).all()):
                foils = torch.tensor([tokens[1:] for tokens in mine.outcomes])
            found.append(here[rows, mine.answer] - here.gather(1, foils).mean(1))
        return torch.stack(found, 1)

    return ((leads(-size) - leads(size)) / (2 * size)).float()


@pytest.mark.parametrize("kind", ["llama-gqa", "gpt2", "neox", "gemma2"])
def test_an_effect_is_the_slope_of_patching_the_site_a_little(own, kind):
    model, pairs = tiny(kind, vocab_size=len(own)), pairs_of(own, "operation", 3)
    found = attribution_patching(model, pairs, kinds=KINDS)
    for component in ("L0.H1", "L1.H3", "L0.MLP", "L2.MLP", "L1.resid"):
        for role in ("op", "answer"):
            mine = found.per_prompt[:, found.components.index(component), found.roles.index(role)]
            expected = step_by_hand(model, pairs, component, role, 0.02)
            torch.testing.assert_close(
                mine, expected, atol=2e-3 * float(expected.abs().max()) + 2e-4, rtol=0.02
            )


def test_in_a_linear_model_every_effect_is_exact(linear, own):
    pairs = pairs_of(own, "operation")
    exact = activation_patching(linear, pairs)
    found = attribution_patching(linear, pairs)
    assert exact.mean.nan_to_num().abs().max() > 0.1
    torch.testing.assert_close(
        found.per_prompt, exact.per_prompt, atol=2e-3, rtol=1e-2, equal_nan=True
    )


def test_the_result_has_the_layout_of_exact_patching(model, own):
    pairs = pairs_of(own, "x", 8)
    exact = activation_patching(model, pairs, kinds=KINDS, roles=("x", "name"))
    found = attribution_patching(model, pairs, kinds=KINDS, roles=("x", "name"))
    assert (found.components, found.roles, found.answers) == (
        exact.components,
        exact.roles,
        exact.answers,
    )
    assert torch.equal(found.per_prompt.isnan(), exact.per_prompt.isnan())
    torch.testing.assert_close(found.total, exact.total, atol=1e-5, rtol=0)
    assert found.screen is None


def test_prompts_in_several_batches_have_the_same_effects(model, own, monkeypatch):
    pairs = pairs_of(own, "order")
    expected = attribution_patching(model, pairs).per_prompt
    monkeypatch.setattr("probes.interventions.attribution_patching.MAX_GRADIENT_FLOATS", 1)
    found = attribution_patching(model, pairs).per_prompt
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)


def test_screened_cells_have_their_exact_effects(model, own):
    pairs = pairs_of(own, "operation")
    exact, screen = activation_patching(model, pairs), attribution_patching(model, pairs)
    found = screened_patching(model, pairs, cells=ExactCells(6, 10, seed=3))
    kept, replaced = (
        torch.isclose(found.per_prompt, one.per_prompt, atol=1e-6, equal_nan=True).all(0).all(-1)
        for one in (screen, exact)
    )
    strength = screen.mean.nan_to_num().abs().amax(-1)
    assert (kept | replaced).all()
    assert replaced.flatten()[strength.flatten().argsort(descending=True)[:6]].all()
    assert int((replaced & (strength > 0)).sum()) >= found.screen.exact >= 10
    assert found.screen.cells == int((strength > 0).sum()) > 40
    assert int(kept.sum()) > 20


def test_the_error_of_a_screen_is_that_of_its_random_cells(model, own):
    pairs = pairs_of(own, "operation")
    exact, screen = activation_patching(model, pairs), attribution_patching(model, pairs)
    check = screened_patching(model, pairs, cells=ExactCells(0, 10_000)).screen
    live = (screen.mean.nan_to_num() != 0).any(-1)
    gap = (screen.mean - exact.mean)[live].abs().mean()
    assert check.random == check.exact == check.cells
    assert check.mean_absolute_error == pytest.approx(float(gap), rel=1e-4)
    assert 0.5 < check.spearman <= 1
    assert 0.5 <= check.top_recall <= 1


def test_roles_that_the_first_eight_pairs_lack_are_not_in_the_error(model, own):
    take = pattern("take-away")
    pairs = tokenize_pairs(own, sample_pairs(take, "x", 20, tokenizers=(own,), seed=2))
    screen = attribution_patching(model, pairs)
    lacks = screen.per_prompt.isnan().all(-1).all(1)
    rare = lacks[:8].all(0) & ~lacks.all(0)
    assert rare.any()
    for cells in (ExactCells(0, 10_000), ExactCells(10_000, 0), ExactCells(40, 40)):
        check = screened_patching(model, pairs, cells=cells).screen
        assert 0 <= check.top_recall <= 1
        assert cells.random == 0 or 0.5 < check.spearman <= 1
        assert cells.random == 0 or 0 < check.mean_absolute_effect < 1
    live = (screen.mean.nan_to_num() != 0).any(-1)
    every = screened_patching(model, pairs, cells=ExactCells(0, 10_000)).screen
    assert every.random == int(live[:, ~rare].sum()) < every.cells == int(live.sum())


def test_random_cells_of_many_pairs_are_patched_exactly_on_the_first_eight(model, own):
    pairs = pairs_of(own, "operation", 12)
    exact, screen = activation_patching(model, pairs), attribution_patching(model, pairs)
    found = screened_patching(model, pairs, cells=ExactCells(6, 10_000))
    replaced = ~torch.isclose(found.per_prompt, screen.per_prompt, atol=1e-6, equal_nan=True).all(
        -1
    )
    assert int(replaced.any(0).sum()) <= 6 < found.screen.exact == found.screen.cells
    torch.testing.assert_close(
        found.per_prompt[replaced], exact.per_prompt[replaced], atol=1e-5, rtol=0
    )
    live = (screen.mean.nan_to_num() != 0).any(-1)
    gap = (screen.per_prompt[:8].nanmean(0) - exact.per_prompt[:8].nanmean(0))[live].abs().mean()
    assert found.screen.mean_absolute_error == pytest.approx(float(gap), rel=1e-4)
    few = activation_patching(model, pairs.first(8))
    torch.testing.assert_close(
        few.per_prompt, exact.per_prompt[:8], atol=1e-5, rtol=0, equal_nan=True
    )


def test_no_hook_and_no_gradient_is_left_behind(model, own):
    pairs = pairs_of(own, "x", 2)
    model.logits(pairs.clean.ids, pairs.clean.mask)
    before = hook_count(model)
    found = attribution_patching(model, pairs)
    assert hook_count(model) == before
    assert not found.per_prompt.requires_grad and not found.total.requires_grad
    assert all(weight.grad is None for weight in model.bridge.parameters())


def test_unknown_components_and_roles_are_refused(model, own):
    pairs = pairs_of(own, "x", 2)
    with pytest.raises(SiteError, match="unknown"):
        attribution_patching(model, pairs, kinds=("neurons",))
    with pytest.raises(SiteError, match="nothing to patch"):
        attribution_patching(model, pairs, roles=())
