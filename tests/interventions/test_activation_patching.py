"""Patching by restart is exact: it equals a whole forward pass with the activation replaced."""

import pytest
import torch

from probes.errors import BatchError, ModelError, SiteError
from probes.interventions import activation_patching as restart
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.interventions.cached_run import BlockCache
from probes.models.model import Model
from probes.models.site import Site
from probes.testing.tiny_models import KINDS, OTHER_KINDS, POST_NORM_KINDS, hook_count, tiny

PROMPTS, LENGTH, LAYERS = 5, 14, 3
SPANS = {"padding": (0, 2), "slot": (4, 6), "next": (6, 7), "late": (9, 11), "end": (12, 14)}
COMPONENTS = ("resid", "mlp", 0, 1, 2, 3)
CELLS = [Site(n, c, r) for n in range(LAYERS) for c in COMPONENTS for r in (*SPANS, "all")]
CELLS += [Site(LAYERS, "resid", role) for role in (*SPANS, "all")]


def prompts(seed=1):
    """Two batches that differ at positions 4 to 6; two prompts are padded on the left."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (PROMPTS, LENGTH), generator=draw)
    other = ids.clone()
    other[:, 4:7] = torch.randint(3, 97, (PROMPTS, 3), generator=draw)
    mask = torch.ones(PROMPTS, LENGTH, dtype=torch.bool)
    mask[0, :3] = mask[3, :2] = False
    readout = torch.tensor([[9, 13], [9, 13], [5, 12], [13, 13], [8, 11]])
    return ids, other, mask, readout


def recordings(model):
    ids, other, mask, readout = prompts()
    return run_with_cache(model, ids, mask, readout), run_with_cache(model, other, mask, readout)


def positions():
    where = {role: torch.zeros(PROMPTS, LENGTH, dtype=torch.bool) for role in SPANS}
    for role, (start, end) in SPANS.items():
        where[role][:, start:end] = True
    # A role may stand elsewhere in each prompt, or nowhere.
    where["late"][1] = where["slot"][1].roll(1)
    where["late"][2] = False
    where["all"] = torch.ones(PROMPTS, LENGTH, dtype=torch.bool)
    return where


def scores(logits, rows):
    return logits.flatten(1)


def whole_pass(clean, source, cell, where):
    """Patch one cell by an edit of a whole forward pass."""
    layer, swap = cell.layer, where[cell.role][..., None]
    name, theirs = {
        "resid": (f"blocks.{layer}.hook_resid_pre", source.resid[layer]),
        "mlp": (f"blocks.{layer}.hook_mlp_out", source.mlp_out[layer % LAYERS]),
    }.get(cell.component, (f"blocks.{layer}.attn.hook_z", source.z[layer % LAYERS]))
    if layer == LAYERS:
        name = f"blocks.{layer - 1}.hook_resid_post"
    if isinstance(cell.component, int):
        swap = swap[..., None] & (torch.arange(4) == cell.component)[:, None]
    with clean.model.editing({name: lambda value: torch.where(swap, theirs, value)}):
        logits = clean.model.logits(clean.ids, clean.mask)
    return logits.take_along_dim(clean.readout[..., None], dim=1)


@pytest.mark.parametrize("kind", [*KINDS, *POST_NORM_KINDS, *OTHER_KINDS])
def test_every_patch_equals_a_whole_pass_with_the_activation_replaced(kind, recwarn):
    clean, source = recordings(tiny(kind))
    assert len(clean._block_caches) == LAYERS and not recwarn.list
    where = positions()
    found = patch_sites(clean, source, CELLS, where, scores)
    wanted = torch.stack([whole_pass(clean, source, c, where).flatten(1) for c in CELLS])
    assert (found - wanted).abs().max() < 1e-5
    assert (wanted - clean.logits.flatten(1)).abs().max() > 0.1


@pytest.mark.parametrize("tokens", [1, 40, 10**6])
def test_results_do_not_depend_on_the_size_of_a_batch(tokens, monkeypatch):
    clean, source = recordings(tiny("llama-gqa"))
    wanted = patch_sites(clean, source, CELLS, positions(), scores)
    monkeypatch.setattr(restart, "TOKENS_PER_BATCH", tokens)
    assert torch.allclose(patch_sites(clean, source, CELLS, positions(), scores), wanted, atol=1e-5)


def test_blocks_that_cannot_restart_are_patched_by_whole_passes_with_a_warning(monkeypatch):
    wanted = patch_sites(*recordings(tiny("llama")), CELLS, positions(), scores)
    model = tiny("llama")
    monkeypatch.setattr(restart.BlockCache, "update", lambda self, keys, values, *_: (keys, values))
    with pytest.warns(UserWarning, match="does not use its key/value cache") as warned:
        clean, source = recordings(model)
    assert clean._block_caches == () and len(str(warned[0].message).splitlines()) == 1
    found = patch_sites(clean, source, CELLS, positions(), scores)
    assert (found - wanted).abs().max() < 1e-5


def test_a_restart_with_other_numbers_than_a_whole_pass_is_not_used(monkeypatch):
    model, run_block = tiny("llama"), Model.run_block
    monkeypatch.setattr(Model, "run_block", lambda *given: run_block(*given) * 1.01)
    with pytest.warns(UserWarning, match="slow.*logits of restarted runs differ by"):
        clean, source = recordings(model)
    found = patch_sites(clean, source, CELLS[:9], positions(), scores)
    wanted = [whole_pass(clean, source, c, positions()).flatten(1) for c in CELLS[:9]]
    assert (found - torch.stack(wanted)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_with_the_runs_own_values_changes_not_one_bit(kind):
    clean, _ = recordings(tiny(kind))
    found = patch_sites(clean, clean, CELLS, positions(), scores)
    assert torch.equal(found, clean.logits.flatten(1).expand_as(found))


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_the_clean_values_over_the_whole_width_changes_nothing(kind):
    clean, _ = recordings(tiny(kind))
    each, residual = torch.arange(PROMPTS), torch.full((PROMPTS,), -2)
    rows = restart._PatchBatch(0, 0, LENGTH, each, each, residual, torch.ones_like(clean.mask))
    assert torch.allclose(restart._run_restarted(clean, clean, rows), clean.logits, atol=2e-6)
    given, _ = clean._block_caches[1]
    again = clean.model.run_block(1, clean.resid[1], given, BlockCache())
    assert torch.equal(again, clean.resid[2])


@pytest.mark.parametrize("kind", KINDS)
def test_patching_everything_gives_the_logits_of_the_source(kind):
    clean, source = recordings(tiny(kind))
    cells = [Site(layer, "resid", "all") for layer in range(LAYERS + 1)]
    found = patch_sites(clean, source, cells, positions(), scores)
    assert (found - source.logits.flatten(1)).abs().max() < 1e-5


def test_a_patch_that_cannot_reach_a_readout_holds_the_clean_value_to_the_last_bit():
    clean, source = recordings(tiny("llama"))
    cells = [Site(0, "resid", "padding"), Site(2, "mlp", "slot"), Site(2, 1, "next")]
    found = patch_sites(clean, source, cells, positions(), scores).unflatten(-1, (2, 97))
    assert torch.equal(found[0], clean.logits)
    # Prompt 2 is read at 5, inside the slot; the others are read later, but not from there.
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found[1:, others], clean.logits[others].expand(2, -1, -1, -1))
    assert not torch.equal(found[1, 2, 0], clean.logits[2, 0])
    assert torch.equal(found[1, 2, 1], clean.logits[2, 1])


def test_a_recording_holds_what_the_model_computes():
    clean, _ = recordings(tiny("gpt2"))
    logits = clean.model.logits(clean.ids, clean.mask)
    torch.testing.assert_close(
        clean.logits, logits.take_along_dim(clean.readout[..., None], dim=1), atol=1e-6, rtol=0
    )
    assert clean.resid.shape == (LAYERS + 1, PROMPTS, LENGTH, 32)
    assert clean.z.shape == (LAYERS, PROMPTS, LENGTH, 4, 8)


def test_aligning_a_source_moves_its_positions():
    _, source = recordings(tiny("llama"))
    index = torch.arange(LENGTH).flip(0).expand(PROMPTS, -1)
    moved = source.realigned(index)
    assert torch.equal(moved.resid, source.resid.flip(2))
    assert torch.equal(moved.z[1, 2, 3], source.z[1, 2, LENGTH - 4])
    assert torch.equal(moved.realigned(index).mlp_out, source.mlp_out)


@pytest.mark.parametrize("kind", KINDS)
def test_no_hook_is_left_after_patching_or_after_an_error(kind):
    model = tiny(kind)
    before = hook_count(model)
    clean, source = recordings(model)
    plain = model.logits(clean.ids, clean.mask)
    ids = torch.ones(1, 99, dtype=torch.long)
    overlong = (ids, ids.bool(), ids[:, :1])

    def fail(logits, rows):
        raise RuntimeError("in the measure")

    patch_sites(clean, source, CELLS, positions(), scores)
    with pytest.raises(RuntimeError):
        patch_sites(clean, source, CELLS, positions(), fail)
    with pytest.raises(ModelError):
        run_with_cache(model, *overlong)
    assert hook_count(model) == before
    assert torch.equal(model.logits(clean.ids, clean.mask), plain)


@pytest.mark.parametrize(
    "cell", [Site(3, "mlp", "all"), Site(0, "attn", "all"), Site(0, 4, "all"), Site(0, 0, "verb")]
)
def test_a_cell_that_the_model_or_the_prompts_lack_is_refused(cell):
    clean, source = recordings(tiny("llama"))
    with pytest.raises(SiteError, match=str(cell.component)):
        patch_sites(clean, source, [cell], positions(), scores)


def test_a_source_of_another_size_is_refused():
    model = tiny("llama")
    ids, _, mask, readout = prompts()
    clean, short = (
        run_with_cache(model, ids, mask, readout),
        run_with_cache(model, ids[:2], mask[:2], readout[:2]),
    )
    with pytest.raises(BatchError):
        patch_sites(clean, short, CELLS, positions(), scores)


def test_inference_mode_gives_the_same_numbers():
    clean, source = recordings(tiny("llama"))
    with torch.inference_mode():
        inside = patch_sites(clean, source, CELLS, positions(), scores)
    assert torch.equal(inside, patch_sites(clean, source, CELLS, positions(), scores))
