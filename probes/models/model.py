"""Model: a decoder with its shape and tokenizer, whose activations can be read and edited."""

import copy
import difflib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.errors import ModelError, SiteError
from probes.models.edits import Edit as Edit
from probes.models.edits import apply_edit, site_edit
from probes.models.kv_cache import block_cache_argument, replaced_caches
from probes.models.loading import LOGIT_TOLERANCE as LOGIT_TOLERANCE
from probes.models.loading import check_finite, find_model, load_hf_model, parse_dtype
from probes.models.process_state import isolated, seeded_init
from probes.models.provenance import Provenance, folder_storage, read_provenance
from probes.models.site import Site
from probes.prompts.batch import tokenize


@dataclass(frozen=True, slots=True)
class Shape:
    """Architecture and sizes of a model."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    context: int
    parallel: bool
    """Whether attention and MLP read the same residual, as in GPT-NeoX."""


@dataclass(frozen=True, eq=False)
class Model:
    """Causal language model whose activations can be read and edited by name."""

    name: str
    origin: str
    shape: Shape
    tokenizer: Any = field(repr=False)
    """A fast Hugging Face tokenizer, or None where the model came without one."""
    bridge: Any = field(repr=False)
    """TransformerLens bridge."""
    config: Any = field(repr=False)
    provenance: Provenance | None = field(default=None, repr=False)
    """How it was made and what it takes to store, where known."""
    lock: Any = field(default_factory=threading.RLock, repr=False)
    passed_checks: set[str] = field(default_factory=set, repr=False)
    """Checks that need not run again, such as that of gradients."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return next(self.bridge.parameters()).dtype

    @torch.no_grad()
    def logits(
        self, ids: Int[Tensor, "prompt position"], mask: Bool[Tensor, "prompt position"]
    ) -> Float[Tensor, "prompt position vocab"]:
        """Logits of the next tokens; `mask` is True for text, False for padding on either side."""
        return self.forward(ids, mask)

    def forward(
        self, ids: Int[Tensor, "prompt position"], mask: Bool[Tensor, "prompt position"]
    ) -> Float[Tensor, "prompt position vocab"]:
        """Logits with gradients of activations enabled."""
        if ids.shape[1] > self.shape.context:
            raise ModelError(
                f"The prompts are too long for {self.name}: {ids.shape[1]} tokens found, "
                f"at most {self.shape.context} fit. Shorten them."
            )
        given: dict[str, Tensor | bool] = {"attention_mask": mask.long(), "use_cache": False}
        if "position_ids" in inspect.signature(self.bridge.original_model.forward).parameters:
            given["position_ids"] = position_ids(mask)
        with self.locked():
            return self.bridge(ids, **given)

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Edit activations in every forward pass inside the `with`.

        Args:
            edits: Functions by site ("L1.H0", "L1.MLP", "L2.resid") or hook name
                ("blocks.1.attn.hook_z"). A function maps the activation to its replacement of
                equal shape and dtype, or to None to keep it. A head's activation is its `z`,
                "prompt position d_head".

        Raises:
            SiteError: The model has no such activation, or the replacement has another shape.
        """
        points = self.bridge.hook_dict
        pairs = [
            site_edit(self.name, (self.shape.layers, self.shape.heads), name, edit)
            if Site.matches(name)
            else (name, edit)
            for name, edit in edits.items()
        ]
        for name, _ in pairs:
            if name not in points or self.bridge._gated_hook_reason(name) is not None:
                near = difflib.get_close_matches(name, points, n=3, cutoff=0.4)
                raise SiteError(
                    f"{self.name} has no activation {name!r}, or does not compute it by default; "
                    f"names close to it: {', '.join(near) or 'none'}. Use a name of this model."
                )
        hooks = [(name, partial(apply_edit, name, edit)) for name, edit in pairs]
        with self.locked(), self.bridge.hooks(fwd_hooks=hooks):
            yield

    @contextmanager
    def recording(
        self, names: Iterable[str], select: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Record activations of the forward pass inside the `with`, by hook name or site.

        Args:
            names: Hook names or sites.
            select: Maps an activation to what is kept of it; by default the tensor itself, which
                in-place operations of the model may still change.
        """
        kept: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            kept[name] = value if select is None else select(value)

        with self.editing({name: partial(keep, name) for name in names}):
            yield kept

    @torch.no_grad()
    def generate(
        self, text: str, *, max_new_tokens: int = 20, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Text with its continuation, also inside `editing`; whole passes, without a cache.

        Args:
            text: Prompt.
            max_new_tokens: Most tokens to add; fewer at the end of text or of the context.
            temperature: Of the sampled distribution; 0 takes the most likely token.
            seed: Of the samples.
        """
        ids = tokenize(self, text).ids.to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        for _ in range(min(max_new_tokens, self.shape.context - ids.shape[1])):
            scores = self.logits(ids, torch.ones_like(ids, dtype=torch.bool))[0, -1]
            if temperature > 0:
                weights = (scores.float() / temperature).softmax(-1)
                token = torch.multinomial(weights, 1, generator=generator)
            else:
                token = scores.argmax(-1, keepdim=True)
            if int(token) == self.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, token[None]], 1)
        return self.tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)

    @contextmanager
    def recording_kv(self, caches: Sequence[object]) -> Iterator[list[dict]]:
        """Replace each block's key/value cache; yields the arguments of each block's call.

        `update(keys, values, layer)` of a cache returns the keys and values to attend to.
        """
        with self.locked(), replaced_caches(self.bridge.blocks, caches) as calls:
            yield calls

    def run_block(
        self, layer: int, resid: Tensor, arguments: Mapping[str, Any], cache: object
    ) -> Tensor:
        """Output of one block alone, with arguments from `recording_kv`."""
        block = self.bridge.blocks[layer]
        out = block(hidden_states=resid, **arguments, **{block_cache_argument(block): cache})
        return out[0] if isinstance(out, tuple) else out

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other threads: their passes would show the edits of this one."""
        if not self.lock.acquire(blocking=False):
            raise ModelError(
                f"{self.name} is in use by another thread: load one model for each thread"
            )
        try:
            yield
        finally:
            self.lock.release()


def position_ids(mask: Bool[Tensor, "prompt position"]) -> Int[Tensor, "prompt position"]:
    """Positions of the tokens of each text from 0, without padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def load(
    name: str | Path | Model, *, dtype: str = "float32", device: str | torch.device | None = None
) -> Model:
    """Load a model.

    Args:
        name: Family member, folder, hub id ("gpt2", "owner/name") or "random-init:NAME:SEED". A
            `Model` is returned unchanged.
        dtype: "float32", "bfloat16" or "float16".
        device: Device of the weights, PyTorch's default by default.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
    """
    if isinstance(name, Model):
        return name
    kind, _, rest = str(name).partition(":")
    if kind == "random-init" and rest:
        like, _, seed = rest.partition(":")
        if not (seed or "0").isdecimal():
            raise ModelError(
                f"The seed of {name!r} is {seed!r}: write it as in 'random-init:full:3'"
            )
        return random_init(load(like, dtype=dtype, device=device), seed=int(seed or 0))
    source, origin = find_model(name)
    with isolated():
        hf_model, tokenizer = load_hf_model(source, parse_dtype(dtype))
        check_finite(hf_model, str(name))
        hf_model = hf_model.to(device or torch.get_default_device())
        return _build_model(
            hf_model, (Path(name).name, origin), tokenizer, _folder_provenance(Path(source))
        )


def _folder_provenance(folder: Path) -> Provenance | None:
    if not folder.is_dir():
        return None
    return read_provenance(folder) or Provenance("trained", "", folder_storage(folder))


def wrap(
    hf_model: nn.Module,
    *,
    name: str,
    tokenizer: object = None,
    origin: str = "in memory",
    provenance: Provenance | None = None,
) -> Model:
    """Model from a copy of a Hugging Face causal model."""
    with isolated():
        return _build_model(copy.deepcopy(hf_model), (name, origin), tokenizer, provenance)


def random_init(model: Model, *, seed: int) -> Model:
    """Random-init model of the same architecture; the weights depend on `seed` alone.

    The caller's random generators are not touched, and threads do not affect each other.
    """
    names = (f"{model.name} random-init {seed}", f"random-init like {model.name}, seed {seed}")
    with isolated():
        from transformers import AutoModelForCausalLM

        with seeded_init(seed):
            config = copy.deepcopy(model.config)
            hf_model = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
        return _build_model(hf_model.to(model.device), names, model.tokenizer)


def _build_model(
    hf_model: Any,  # noqa: ANN401
    names: tuple[str, str],
    tokenizer: object,
    provenance: Provenance | None = None,
) -> Model:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    hf_model.eval()
    hf_model.set_attn_implementation("eager")
    config = copy.deepcopy(hf_model.config)
    architecture = type(hf_model).__name__
    try:  # No tokenizer: the bridge would replace it, and the kit feeds ids only.
        bridge = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
    except ValueError as error:
        raise ModelError(
            f"The architecture of {names[0]} is not supported: {architecture} found. "
            "Use a decoder such as Llama, GPT-2 or GPT-NeoX."
        ) from error
    # Nothing here trains it: passes keep no activations for gradients of weights.
    bridge.requires_grad_(False)
    cfg = bridge.cfg
    shape = Shape(
        architecture=architecture,
        layers=int(cfg.n_layers),
        heads=int(cfg.n_heads),
        kv_heads=int(cfg.n_key_value_heads or cfg.n_heads),
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_vocab=int(config.vocab_size),
        context=int(config.max_position_embeddings),
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
    )
    return Model(*names, shape, tokenizer, bridge, config, provenance)


def require_eval(model: Model) -> None:
    """Raise ModelError for a model in training mode, whose runs differ by dropout."""
    if any(module.training for module in model.bridge.modules()):
        raise ModelError(
            f"{model.name} is in training mode, so that its runs are random: call eval() on it"
        )
