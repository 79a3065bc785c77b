"""Checks of the contract suite: each returns what it measured, or raises for a wrong number."""

import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.circuits.edges.edge_attribution import edge_attribution
from probes.circuits.edges.path_patching import run_circuits
from probes.circuits.runs.reference import run_references
from probes.circuits.task import Task
from probes.compression.storage import to_hf_model
from probes.errors import ModelError, ProbeError
from probes.interventions.activation_patching import patch_sites, run_with_cache
from probes.models.model import Model, load
from probes.models.site import Site
from probes.prompts.catalog import pattern
from probes.prompts.tokens.batch import tokenize
from probes.prompts.tokens.pair_batch import sample_pairs, tokenize_pairs
from probes.testing.tiny_models import hook_count

# Relative tolerances: of logits that should be equal, and of slopes by finite differences.
_LOGITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_SLOPE = {torch.float32: 0.02, torch.bfloat16: 0.3, torch.float16: 0.1}
_TOKENS = 8


class WrongNumberError(Exception):
    """A check found a wrong number."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A model with random tokens: one text, and a copy whose middle token differs."""

    model: Model
    ids: Int[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    logits: Float[Tensor, "prompt position vocab"]

    @classmethod
    def draw(cls, model: Model, seed: int) -> "Trial":
        """Run a model on random tokens."""
        generator = torch.Generator().manual_seed(seed)
        length = min(_TOKENS, model.shape.context)
        # Low ids are often special tokens, whose embeddings may be masked.
        low = min(8, model.shape.d_vocab // 2)
        ids = torch.randint(low, model.shape.d_vocab, (1, length), generator=generator).repeat(2, 1)
        other = (ids[1, length // 2] - low + 1) % (model.shape.d_vocab - low) + low
        ids[1, length // 2] = other
        ids = ids.to(model.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return cls(model, ids, mask, model.logits(ids, mask))

    @property
    def middle(self) -> int:
        """Position where the two texts differ."""
        return self.ids.shape[1] // 2

    def require_close(self, value: Tensor, expected: Tensor, what: str) -> str:
        """Largest difference, in words; an error where it is above the tolerance."""
        gap = float((value - expected).abs().max())
        allowed = _LOGITS.get(self.model.dtype, 1e-4) * max(1.0, float(expected.abs().max()))
        if not gap <= allowed:
            raise WrongNumberError(f"{what} differ by {gap:.1e}, {allowed:.1e} allowed")
        return f"largest difference {gap:.1e}"


@torch.no_grad()
def check_logits(trial: Trial, reference: nn.Module | None) -> str:
    """Logits equal those of the untouched Hugging Face model."""
    if reference is None:
        return trial.require_close(
            trial.model.logits(trial.ids, trial.mask), trial.logits, "the logits of two runs"
        )
    rows = [reference(input_ids=row[None], use_cache=False).logits[0] for row in trial.ids]
    return trial.require_close(
        trial.logits, torch.stack(rows), "the logits of the kit and of Hugging Face"
    )


def check_padding(trial: Trial) -> str:
    """Padding on either side changes no logit."""
    model, ids = trial.model, trial.ids
    pad = min(2, model.shape.context - ids.shape[1])
    if pad < 1:
        return "the context has no room for padding"
    filler = torch.full_like(ids[:, :pad], int(ids[0, 0]))
    gone, kept = torch.zeros_like(filler, dtype=torch.bool), trial.mask
    left = model.logits(torch.cat([filler, ids], 1), torch.cat([gone, kept], 1))[:, pad:]
    right = model.logits(torch.cat([ids, filler], 1), torch.cat([kept, gone], 1))[:, :-pad]
    trial.require_close(right, trial.logits, "logits before padding on the right")
    return trial.require_close(left, trial.logits, "logits behind padding on the left")


def check_causal(trial: Trial) -> str:
    """A changed token changes no logit before it."""
    before = trial.logits[:, : trial.middle]
    return trial.require_close(before[1], before[0], "logits before a changed token")


def check_deterministic(trial: Trial) -> str:
    """Two runs are bit-equal."""
    if not trial.model.logits(trial.ids, trial.mask).equal(trial.logits):
        raise WrongNumberError("two runs on the same tokens give different logits")
    return "two runs are bit-equal"


def check_hooks(trial: Trial) -> str:
    """An edit that fails leaves no hook, no changed weight and no changed logit."""
    model = trial.model
    before = hook_count(model)
    weights = float(sum(p.double().sum() for p in model.bridge.parameters()))

    def fail(_value: Tensor) -> Tensor:
        raise KeyError("an edit that fails")

    try:
        with model.editing({_resid(model): fail}):
            model.logits(trial.ids, trial.mask)
    except KeyError:
        pass
    if hook_count(model) != before:
        raise WrongNumberError("hooks remain after an edit that failed")
    if float(sum(p.double().sum() for p in model.bridge.parameters())) != weights:
        raise WrongNumberError("weights changed")
    if not model.logits(trial.ids, trial.mask).equal(trial.logits):
        raise WrongNumberError("logits differ after an edit that failed")
    return "no hook and no change remains after a failed edit"


def check_identity_edit(trial: Trial) -> str:
    """Edits that change nothing leave the logits bit-equal."""
    model, names = trial.model, []
    for component in ("resid", "mlp", 0):
        site = Site(model.shape.layers - 1, component)
        with model.editing({str(site): lambda value: value.clone()}):
            logits = model.logits(trial.ids, trial.mask)
        if not logits.equal(trial.logits):
            raise WrongNumberError(f"an edit of {site} that changes nothing changes the logits")
        names.append(str(site))
    return f"bit-equal at {', '.join(names)}"


def check_patching(trial: Trial) -> str:
    """A patch of everything gives the source's logits; restarting equals running in full."""
    model, ids, mask = trial.model, trial.ids, trial.mask
    readout = torch.full((1, 1), ids.shape[1] - 1, device=ids.device)
    clean, source = (run_with_cache(model, ids[k, None], mask[:1], readout) for k in (0, 1))
    layers, roles = model.shape.layers, {"all": mask[:1]}
    sites = [Site(layer, part, "all") for layer in range(layers) for part in ("resid", "mlp", 0)]
    keep = _readout_logits
    patched = patch_sites(clean, source, sites, roles, keep)
    trial.require_close(
        patched[0, 0], trial.logits[1, -1], "logits with all of the input patched and the source's"
    )
    in_full = patch_sites(replace(clean, _block_caches=()), source, sites, roles, keep)
    trial.require_close(patched, in_full, "logits of patches that restart and that run in full")
    same = patch_sites(clean, clean, sites, roles, keep)
    if not all(bool(one.equal(same[0])) for one in same):
        raise WrongNumberError("patching a run with itself changes its logits")
    return "restarts blocks" if clean._block_caches else "runs in full"


def _readout_logits(logits: Tensor, _prompt: Tensor) -> Tensor:
    return logits[:, 0]


def check_logit_lens(trial: Trial) -> str:
    """The lens at the last layer gives the model's own logits."""
    model = trial.model
    last = f"blocks.{model.shape.layers - 1}.hook_resid_post"
    with torch.no_grad(), model.recording([last]) as kept:
        model.logits(trial.ids, trial.mask)
    return trial.require_close(
        model.unembed(kept[last]),
        trial.logits,
        "logits of the lens at the last layer",
    )


def check_attention(trial: Trial) -> str:
    """Rows of attention are causal and sum to 1, or less with a sink."""
    model = trial.model
    hooks = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.shape.layers)]
    with torch.no_grad(), model.recording(hooks) as kept:
        model.logits(trial.ids, trial.mask)
    sums: list[float] = []
    for name in hooks:
        pattern = kept[name].float()
        length = trial.ids.shape[1]
        if pattern.shape[-2:] != (length, length):
            raise WrongNumberError(f"{name} has shape {tuple(pattern.shape)}")
        if float(pattern.triu(1).abs().max()) > 1e-6:
            raise WrongNumberError(f"{name} attends to later tokens")
        row = pattern.sum(-1)
        if float(row.max()) > 1 + 1e-3:
            raise WrongNumberError(f"a row of {name} sums to {float(row.max()):.4f}")
        sums.append(float(row.min()))
    if min(sums) < 1 - 1e-3:
        return f"rows sum to {min(sums):.2f} or more: a sink takes the rest"
    return "rows sum to 1"


def check_gradients(trial: Trial) -> str:
    """The gradient of a logit difference along a random direction equals its slope."""
    model = trial.model
    name = _resid(model)
    with torch.no_grad(), model.recording([name], torch.clone) as kept:
        model.logits(trial.ids, trial.mask)
    resid = kept[name]
    direction = torch.randn(
        resid.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32
    ).to(resid)
    # By token: one huge activation would else set the size of all steps.
    direction = direction * resid.norm(dim=-1, keepdim=True) / direction.norm(dim=-1, keepdim=True)
    step = torch.zeros((), device=resid.device, dtype=resid.dtype, requires_grad=True)

    def output(move: Tensor) -> Tensor:
        with model.editing({name: lambda value: value + move * direction}):
            logits = model.forward(trial.ids, trial.mask)
        return (logits[:, -1, 0] - logits[:, -1, 1]).float().sum()

    gradient = float(torch.autograd.grad(output(step), step)[0])
    best = float("inf")
    for size in (1e-2, 3e-3, 1e-3):
        with torch.no_grad():
            after, here, before = (float(output(step + sign * size)) for sign in (1, 0, -1))
        # On one side another expert may be chosen: a jump, which no gradient sees.
        for rise in (after - before, 2 * (after - here), 2 * (here - before)):
            slope = rise / (2 * size)
            best = min(best, abs(slope - gradient) / max(abs(gradient), abs(slope), 1e-3))
    if not best <= _SLOPE.get(model.dtype, 0.02):
        raise WrongNumberError(f"a gradient differs from its slope by {best:.1%}")
    return f"differs from the slope by {best:.1%}"


def _task(trial: Trial) -> Task:
    """A question with another number; random tokens for a model without a tokenizer."""
    tokenizer = trial.model.tokenizer
    if tokenizer is not None:
        with suppress(ProbeError):  # The words may not align, or be too long for the context.
            pairs = sample_pairs(pattern("take-away"), "x", 4, tokenizers=(tokenizer,), seed=0)
            batch = tokenize_pairs(tokenizer, pairs, max_length=trial.model.shape.context)
            return Task.from_pairs(batch, skip_unequal=True)[:1]
    best = trial.logits[0, -1].argsort(descending=True)[:2].cpu()
    ids = trial.ids.cpu()
    return Task.from_tokens(ids[:1], ids[1:], best[:1], best[1:, None])


def check_attribution(trial: Trial) -> str:
    """Edge attribution gives finite scores; it checks its gradients and the residual sum."""
    scores = edge_attribution(trial.model, _task(trial), method="eap").mean
    if not bool(scores.isfinite().all()):
        raise WrongNumberError("some edge scores are not finite")
    return f"{len(scores)} edges"


def check_circuits(trial: Trial) -> str:
    """The circuit of all edges gives the clean run, that of none the ablated run."""
    task = _task(trial)
    runs = run_references(trial.model, task)
    masks = torch.zeros(2, len(task.computation_graph(trial.model)), dtype=torch.bool)
    masks[0] = True
    values = run_circuits(runs, masks)
    whole = trial.require_close(values[0], runs.clean_logit_diffs, "logits of the whole circuit")
    trial.require_close(values[1], runs.ablated_logit_diffs, "logits of the empty circuit")
    return whole


def check_roles(trial: Trial) -> str:
    """Roles of a question cover the tokens of their words."""
    if trial.model.tokenizer is None:
        raise ModelError("The model has no tokenizer: roles need its character offsets")
    (question,) = pattern("take-away").sample_questions(1, seed=0)
    batch = tokenize(trial.model, [question])
    for role in ("x", "op"):
        tokens = batch.ids[0][batch.role_mask(role)[0]].tolist()
        text, wanted = trial.model.tokenizer.decode(tokens), question.role_text(role)
        if wanted.strip() not in text:
            raise WrongNumberError(f"the tokens of role {role!r} are {text!r}, not {wanted!r}")
    return f"{len(batch.roles)} roles"


def check_save_and_load(trial: Trial) -> str:
    """A saved and reloaded model gives the same logits."""
    with tempfile.TemporaryDirectory() as folder:
        to_hf_model(trial.model).save_pretrained(folder)
        again = load(folder, dtype=str(trial.model.dtype).removeprefix("torch."))
        logits = again.logits(trial.ids.to(again.device), trial.mask.to(again.device))
    return trial.require_close(
        logits.to(trial.logits.device), trial.logits, "logits before saving and after loading"
    )


def _resid(model: Model) -> str:
    return f"blocks.{model.shape.layers // 2}.hook_resid_pre"
