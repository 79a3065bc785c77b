"""Model: a decoder with its shape and tokenizer, whose activations can be read and edited."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.errors import ModelError
from probes.models.acceptance import check_acceptance, reference_logits
from probes.models.bridge_hints import BridgeHints
from probes.models.edits import Edit, hook_edit
from probes.models.files import loading, names
from probes.models.files.provenance import Provenance
from probes.models.generation import continue_text
from probes.models.layers.attention_hooks import (
    adapt_attention,
    check_attention_edits,
    require_effect,
)
from probes.models.layers.kv_cache import block_cache_argument, replaced_caches
from probes.models.process_state import exclusive, isolated
from probes.models.readout import run_bridge
from probes.models.run_checks import require_eval, require_finite, require_tokens, require_unembed
from probes.models.shape import Shape as Shape
from probes.models.shape import read_shape


@dataclass(frozen=True, eq=False)
class Model(BridgeHints):
    """Causal language model (`name`, from `origin`) whose activations can be read and edited."""

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
    """Held during a pass; another thread's pass meanwhile is an error."""
    turn: Any = field(default_factory=threading.RLock, repr=False)
    """Held by jobs that wait for one another, where several threads share the model."""
    passed_checks: set[str] = field(default_factory=set, repr=False)
    """Checks that the model passed and that need not run again, such as that of gradients."""
    failed_checks: dict[str, str] = field(default_factory=dict, repr=False)
    """What was found by checks that only decide how the model is run, such as that of restarts."""
    batch_tokens: dict[str, int] = field(default_factory=dict, repr=False)
    """Most tokens of a pass of each kind that has run out of memory (`micro_batches`)."""
    active_edits: list[str] = field(default_factory=list, repr=False)
    """Sites and hook names of the `editing` in effect; measurements refuse an edited model."""

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
        self,
        ids: Int[Tensor, "prompt position"],
        mask: Bool[Tensor, "prompt position"],
        at: Int[Tensor, "prompt answer"] | None = None,
    ) -> Float[Tensor, "prompt _ vocab"]:
        """Logits of the next tokens at all positions or `at` some; `mask` is False for padding."""
        return self.forward(ids, mask, at)

    def forward(
        self,
        ids: Int[Tensor, "prompt position"],
        mask: Bool[Tensor, "prompt position"],
        at: Int[Tensor, "prompt answer"] | None = None,
    ) -> Float[Tensor, "prompt _ vocab"]:
        """Like `logits`, with gradients of activations enabled.

        Raises:
            ModelError: A prompt is too long, a token unknown, a logit not finite, or no eval().
        """
        require_eval(self)
        ids = require_tokens(self, ids, mask)
        with self.locked():
            logits = run_bridge(self.bridge, ids, mask, at)
        require_finite(self.name, logits, mask if at is None else mask.gather(1, at))
        return logits

    def unembed(
        self, resid: Float[Tensor, "*_ position d_model"]
    ) -> Float[Tensor, "*_ position vocab"]:
        """Logits of residual streams: final norm, unembedding, soft-cap or scale (logit lens).

        Raises:
            ModelError: At the last layer these are not the model's own logits.
        """
        require_unembed(self)
        logits = self.bridge.unembed(self.bridge.ln_final(resid))
        return self.bridge.adapter.apply_output_logits_transform(logits)

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Edit activations in every forward pass inside the `with`.

        Args:
            edits: Functions by site ("L1.H0", "L1.MLP", "L2.resid") or hook name
                ("blocks.1.attn.hook_z"). A function maps the activation to another one of equal
                shape and dtype, or to None to keep it. A head's is `z`, "prompt position d_head".

        Raises:
            SiteError: The model has no such activation, or the replacement has another shape.
        """
        for name in edits:
            require_effect(self, name)
        with self.hooked(edits):
            before = len(self.active_edits)
            self.active_edits.extend(edits)
            try:
                yield
            finally:
                del self.active_edits[before:]

    @contextmanager
    def hooked(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Like `editing`, also where the model would ignore an edit: for reading."""
        size = (self.shape.layers, self.shape.heads)
        hooks = [hook_edit(self.name, self.bridge, size, *item) for item in edits.items()]
        with self.locked(), self.bridge.hooks(fwd_hooks=hooks):
            yield

    @contextmanager
    def recording(
        self, names: Iterable[str], select: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Record activations of the forward pass inside the `with`, by hook name or site.

        `select` maps an activation to what is kept of it; by default the tensor itself, which
        in-place operations of the model may still change.
        """
        kept: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> None:
            kept[name] = value if select is None else select(value)

        with self.hooked({name: partial(keep, name) for name in names}):
            yield kept

    def generate(
        self, text: str, *, max_new_tokens: int = 20, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Text with its continuation, also inside `editing`; whole passes, without a cache.

        Args:
            text: Prompt.
            max_new_tokens: Most tokens to add; fewer at the end of text or of the context.
            temperature, seed: Of the sampling; temperature 0 takes the most likely token.
        """
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        return continue_text(self, text, **settings)

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
        with exclusive(self.lock, self.name):
            yield


ModelSpec = str | Path | Model | loading.HasModel


def load(  # noqa: PLR0913 (each is an option of its own)
    source: ModelSpec,
    *,
    name: str = "",
    revision: str = "",
    dtype: str = "float32",
    device: str | torch.device | None = None,
    add_bos: bool | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """Load a model; a `Model` is returned unchanged, and a derived model in memory as a `Model`.

    Args:
        source: Family member, folder, GGUF file, hub id ("gpt2", "owner/name@revision") or
            "random-init:NAME:SEED"; "NAME=SOURCE" also gives a name.
        name: Name of the model, by default the last part of its source.
        revision: Branch, tag or commit of a hub id.
        dtype: "float32", "bfloat16" or "float16".
        device: Device of the weights, PyTorch's default by default.
        add_bos: Whether the tokenizer writes its BOS token, by default as its own files say.
        adapter: Folder of a LoRA adapter of peft, which is merged into the weights.

    Raises:
        ProbeError: There is no such model, it cannot be loaded, or it has no BOS token to add.
    """
    if not isinstance(source, str | Path):
        model = source if isinstance(source, Model) else loading.build_model(source)
        if adapter is not None:
            raise ModelError(f"{source!r} is loaded already: give its folder to add an adapter")
        return replace(model, name=name) if name else model
    options = loading.SourceOptions(name, revision, dtype, device, add_bos, adapter)
    own_name, place = names.split_name(source)
    if (parts := names.parse_random_init(place)) is None or adapter is not None:
        with isolated():
            return _build_model(*loading.load_source(source, options))
    like = load(parts[0], revision=revision, dtype=dtype, device=device, add_bos=add_bos)
    chosen = name or ("" if own_name == place else own_name)
    return load(random_init(like, seed=parts[1]), name=chosen)


def wrap(
    hf_model: nn.Module,
    *,
    name: str,
    tokenizer: object = None,
    origin: str = "in memory",
    provenance: Provenance | None = None,
) -> Model:
    """Model from a copy of a Hugging Face causal model, which is not changed.

    Args:
        hf_model: Causal decoder of transformers, with its weights.
        name, origin: Name of the model, and where it is from, in words.
        tokenizer, provenance: Its fast tokenizer, and how it was made; None where there is none.

    Raises:
        ModelError: The architecture is not supported, a weight is not finite, or logits differ.
    """
    with isolated():
        return _build_model(copy.deepcopy(hf_model), (name, origin), tokenizer, provenance)


def random_init(model: ModelSpec, *, seed: int) -> Model:
    """Random-init model of the architecture of `model`; the weights depend on `seed` alone.

    Raises:
        ModelError: The seed is out of range.
    """
    model = load(model)
    called = (f"{model.name} random-init {seed}", f"random-init like {model.name}, seed {seed}")
    with isolated():
        hf_model = loading.random_hf_model(model.config, model.dtype, seed)
        return _build_model(hf_model.to(model.device), called, model.tokenizer)


def _build_model(
    hf_model: Any,  # noqa: ANN401
    called: tuple[str, str],
    tokenizer: object,
    provenance: Provenance | None = None,
) -> Model:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    name, architecture = called[0], type(hf_model).__name__
    loading.require_one_device(hf_model, name)
    loading.check_finite(hf_model, name)
    problem = f"{name} ({architecture}) is not supported"
    with loading.model_errors(problem, "Use a decoder such as Llama, GPT-2 or GPT-NeoX."):
        hf_model.eval()
        hf_model.set_attn_implementation("eager")
        config, reference = copy.deepcopy(hf_model.config), reference_logits(hf_model)
        # No tokenizer: the bridge would replace it, and the kit feeds ids only.
        bridge = build_bridge_from_module(hf_model, architecture, hf_config=hf_model.config)
        # Nothing here trains it: passes keep no activations for gradients of weights.
        bridge.requires_grad_(False)
        adapt_attention(bridge, config)
        shape = read_shape(architecture, config, bridge.cfg)
        model = Model(*called, shape, tokenizer, bridge, config, provenance)
        check_acceptance(model, reference)
        check_attention_edits(model, reference.ids, reference.mask)
    return model
