"""Odd edits, sites, sizes and settings, and threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

import probes as pb
from benchmarks.faults.trial import OddInput
from probes.comparison.setup.references import ComparisonSettings
from probes.compression.distillation.plan import TrainingConfig
from probes.compression.distillation.targets import parse_labels
from probes.compression.pruning.prune import prune
from probes.compression.quantization.quantize import quantize
from probes.errors import (
    BatchError,
    FigureError,
    ModelError,
    PatternError,
    ProbeError,
    SiteError,
)
from probes.interventions.activation_patching import patch_sites, run_batch_with_cache
from probes.models.model import Model, load, random_init, wrap
from probes.models.site import Site
from probes.prompts.tokens.pair_batch import PairBatch
from probes.testing.tiny_models import tiny_hf

TEXT = "Tom has 2 foxes."


@cache
def scratch() -> Model:
    """The smallest shipped model."""
    return load("scratch")


@cache
def pairs(count: int = 4) -> PairBatch:
    """Some pairs of the take-away pattern."""
    sample = pb.pattern("take-away").sample_pairs("operation", count, seed=0)
    return pb.tokenize_pairs(scratch().tokenizer, sample)


def edited(name: str, edit: Callable[[Tensor], object]) -> str:
    """Continue a text inside `editing`."""
    with scratch().editing({name: edit}):  # pyright: ignore[reportArgumentType]
        return scratch().generate(TEXT, max_new_tokens=1)


def in_place(value: Tensor) -> None:
    """Change an activation and return nothing."""
    value.mul_(2)


EDITS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "a layer that is absent": ("L9.H0", torch.zeros_like),
    "a head that is absent": ("L0.H9", torch.zeros_like),
    "a layer of 5,000 digits": (f"L{'9' * 5000}.H0", torch.zeros_like),
    "a negative layer": ("L-1.H0", torch.zeros_like),
    "lower case": ("l0.h0", torch.zeros_like),
    "a role": ("L0.H0@op", torch.zeros_like),
    "a misspelt hook": ("blocks.0.attn.hook_zz", torch.zeros_like),
    "an empty name": ("", torch.zeros_like),
    "another shape": ("L0.MLP", lambda value: value[:, :1]),
    "another number format": ("L0.MLP", lambda value: value.double()),
    "a change in place": ("L0.MLP", in_place),
    "a number": ("L0.MLP", lambda _: 0.0),
    "a list": ("L0.MLP", lambda value: value.tolist()),
    "a tuple": ("L0.MLP", lambda value: (value,)),
    "NumPy": ("L0.MLP", lambda value: value.numpy() * 0),
    "NaN": ("L0.MLP", lambda value: value * torch.nan),
    "another device": ("L0.MLP", lambda value: value.to("meta")),
    "no function": ("L0.MLP", 0),
}
SITES = ("", "L1", "L1.H0.q", "H0", "L0.H0@", "L 0.H0", "L0.MLP0", "L0.resid@a@b\n", "L0-H0")
SETTINGS: dict[str, tuple[Callable[[], object], type[ProbeError]]] = {
    "pairs where texts are read": (lambda: pb.logit_lens(scratch(), pairs()), BatchError),
    "texts in texts": (lambda: pb.capture(scratch(), [["two foxes"]]), BatchError),
    "two heads of a heatmap": (
        lambda: pb.heatmap(scratch(), "two foxes", head=["L0.H0", "L0.H1"]), SiteError),
    "a number for a head": (lambda: pb.heatmap(scratch(), "two foxes", head=3), SiteError),
    "an unknown component": (
        lambda: pb.activation_patching(scratch(), pairs(), kinds=["head"]), SiteError),
    "no component": (lambda: pb.activation_patching(scratch(), pairs(), kinds=[]), SiteError),
    "an unknown role": (
        lambda: pb.activation_patching(scratch(), pairs(), roles=["fox"]), SiteError),
    "no role": (lambda: pb.activation_patching(scratch(), pairs(), roles=[]), SiteError),
    "runs of different sizes": (lambda: _patched(4, 3, "L0.H0@op"), BatchError),
    "a site without a role": (lambda: _patched(4, 4, "L0.H0"), SiteError),
    "a head that is absent": (lambda: _patched(4, 4, "L0.H9@op"), SiteError),
    "no pairs": (lambda: pb.tokenize_pairs(scratch().tokenizer, []), BatchError),
    "-1 prompts of the gate": (
        lambda: pb.gate(scratch(), pb.pattern("take-away"), prompts=-1), PatternError),
    "0 prompts of the gate": (
        lambda: pb.gate(scratch(), pb.pattern("take-away"), prompts=0), ProbeError),
    "a seed of -1": (lambda: random_init(scratch(), seed=-1), ModelError),
    "a seed of 100 digits": (lambda: random_init(scratch(), seed=10**99), ModelError),
    "a generated length of -1": (lambda: scratch().generate(TEXT, max_new_tokens=-1), ModelError),
    "a temperature of -1": (lambda: scratch().generate(TEXT, temperature=-1.0), ModelError),
    "a temperature of NaN": (lambda: scratch().generate(TEXT, temperature=torch.nan), ModelError),
    "a generation seed of 100 digits": (
        lambda: scratch().generate(TEXT, temperature=1.0, seed=10**99), ModelError),
    "a heatmap of a head that is absent": (
        lambda: pb.heatmap(scratch(), TEXT, head="L9.H0"), FigureError),
    "a heatmap of no text": (lambda: pb.heatmap(scratch(), ""), BatchError),
    "a heatmap without a tokenizer": (
        lambda: pb.heatmap(wrap(tiny_hf("llama", 0), name="bare"), TEXT), ProbeError),
    "a comparison with 0 nulls": (
        lambda: pb.compare("full", "full", settings=ComparisonSettings(nulls=0)), ModelError),
    "a comparison with an unknown pattern": (
        lambda: pb.compare("full", "full", "fox"), PatternError),
    "a family of one": (lambda: pb.compare_family("full", []), ModelError),
    "an unknown scheme": (lambda: quantize("scratch", "int3"), ModelError),
    "a scheme of 0 bits": (lambda: quantize("scratch", "rtn-0"), ModelError),
    "a scheme of 100 bits": (lambda: quantize("scratch", "rtn-100"), ModelError),
    "a fraction of 1.5": (lambda: prune("scratch", 1.5), ModelError),
    "a fraction of -0.1": (lambda: prune("scratch", -0.1), ModelError),
    "a fraction of NaN": (lambda: prune("scratch", float("nan")), ModelError),
    "an unknown pruning method": (lambda: prune("scratch", 0.5, method="luck"), ModelError),
    "unknown labels": (lambda: parse_labels("loud"), ModelError),
    "labels of the best 0": (lambda: parse_labels("top-k:0"), ModelError),
    "labels of the best x": (lambda: parse_labels("top-k:x"), ModelError),
    "labels smoothed by 2": (lambda: parse_labels("smoothed:2"), ModelError),
    "labels smoothed by NaN": (lambda: parse_labels("smoothed:nan"), ModelError),
    "a label temperature of 0": (lambda: parse_labels("soft", temperature=0.0), ModelError),
    "a label temperature of NaN": (
        lambda: parse_labels("soft", temperature=float("nan")), ModelError),
    "0 steps": (lambda: TrainingConfig(0, 0), ModelError),
    "a batch of -1": (lambda: TrainingConfig(1, 0, batch=-1), ModelError),
    "a learning rate of NaN": (
        lambda: TrainingConfig(1, 0, learning_rate=float("nan")), ModelError),
    "a learning rate of -1": (lambda: TrainingConfig(1, 0, learning_rate=-1.0), ModelError),
    "a training seed of 100 digits": (lambda: TrainingConfig(1, 10**99), ModelError),
    "fewer layers by growth": (lambda: pb.grow("scratch", "identity", 1), ModelError),
    "growth by an unknown method": (lambda: pb.grow("scratch", "luck", 4), ModelError),
    "0 layers by growth": (lambda: pb.grow("scratch", "identity", 0), ModelError),
    "training mode": (lambda: _training(), ModelError),
    "a patch inside an edit": (lambda: _inside_an_edit(), ModelError),
    "an edit in another thread": (lambda: _other_thread(), ModelError),
}  # fmt: skip


def inputs() -> list[OddInput]:
    """All odd edits, sites and settings."""
    found = [
        OddInput(f"edit: {name}", lambda _, e=edit: edited(*e),
                 ModelError if name == "NaN" else SiteError)
        for name, edit in EDITS.items()
    ]  # fmt: skip
    found += [
        OddInput(f"site: {text!r}", lambda _, t=text: Site.parse(t), SiteError) for text in SITES
    ]
    found += [
        OddInput(f"setting: {name}", lambda _, r=run: r(), error)
        for name, (run, error) in SETTINGS.items()
    ]
    found += [
        OddInput("edit: none", lambda _: scratch().active_edits, check=lambda edits: not edits),
        OddInput("edit: an identity", lambda _: edited("L0.MLP", torch.clone) == _plain()),
        OddInput("edit: nothing returned", lambda _: edited("L0.MLP", lambda _: None) == _plain()),
        OddInput("threads: 16 load a model", lambda _: _loads_alike()),
        OddInput("threads: 16 run one model", lambda _: _runs_alike()),
    ]
    return found


def _plain() -> str:
    return scratch().generate(TEXT, max_new_tokens=1)


def _patched(count: int, source_count: int, site: str) -> Tensor:
    runs = [run_batch_with_cache(scratch(), pairs(n).clean) for n in (count, source_count)]
    return patch_sites(
        *runs, [Site.parse(site)], {"op": pairs(count).role_mask("op")}, lambda logits, _: logits
    )


def _training() -> object:
    model = load("scratch")
    model.bridge.train()
    return pb.gate(model, pb.pattern("take-away"), prompts=8)


def _inside_an_edit() -> object:
    with scratch().editing({"L0.MLP": torch.zeros_like}):
        return pb.activation_patching(scratch(), pairs())


def _other_thread() -> object:
    with scratch().editing({"L0.MLP": torch.zeros_like}), ThreadPoolExecutor(1) as pool:
        return pool.submit(_plain).result()


def _loads_alike() -> bool:
    def total(_: int) -> float:
        return sum(float(w.sum()) for w in load("scratch").bridge.parameters())

    with ThreadPoolExecutor(16) as pool:
        return len(set(pool.map(total, range(16)))) == 1


def _runs_alike() -> bool:
    """Whether each thread gets the right text, or one line."""
    start = threading.Barrier(16)

    def text(_: int) -> str:
        start.wait()
        try:
            return _plain()
        except ModelError as error:
            return "in use" if "in use by another thread" in str(error) else str(error)

    with ThreadPoolExecutor(16) as pool:
        return set(pool.map(text, range(16))) <= {_plain(), "in use"}
