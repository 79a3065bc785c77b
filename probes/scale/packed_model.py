"""Packed model: a model as files in memory, from which a worker builds an equal one.

It has the configuration, the weights and the tokenizer as their own plain formats: JSON,
safetensors and the files of the tokenizer. No code travels.
"""

import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from probes.errors import EngineError
from probes.models.model import Model, wrap
from probes.scale.decoding import decode
from probes.scale.encoding import Tree, encode, model_digest

_WRAPPER = "._original_component"  # What TransformerLens adds to the names of wrapped modules.


@dataclass(frozen=True, eq=False)
class PackedModel:
    """A model as plain values.

    Attributes:
        name, origin: Its name and where it came from.
        digest: Its digest, which the built model must have.
        config: Configuration of Hugging Face, as JSON.
        dtype, device: Number format and kind of device of the weights, as torch names them.
        provenance: Its provenance, encoded.
        weights: Weights as a safetensors file.
        tokenizer: Files of the tokenizer by name; empty for a model without one.
    """

    name: str
    origin: str
    digest: str
    config: str
    dtype: str
    device: str
    provenance: Tree
    weights: bytes
    tokenizer: Mapping[str, bytes]


def pack_model(model: Model, digest: str = "") -> PackedModel:
    """Pack a model.

    Args:
        model: A model.
        digest: Its digest, where it is known.
    """
    return PackedModel(
        name=model.name,
        origin=model.origin,
        digest=digest or model_digest(model),
        config=json.dumps(model.config.to_dict()),
        dtype=_dtype(model),
        device=model.device.type,
        provenance=encode(model.provenance).tree,
        weights=save_tensors(_plain_weights(model)),
        tokenizer=_tokenizer_files(model.tokenizer),
    )


def unpack_model(packed: PackedModel, tokenizer: Any = None) -> Model:  # noqa: ANN401
    """Build the model that was packed, by default with a tokenizer of its own.

    Raises:
        EngineError: What is built is another model: another version of a library, or a model whose
            modules are not those of its configuration.
    """
    from transformers import AutoConfig

    facts = json.loads(packed.config)
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    hf_model = _empty_model(config, packed.dtype)
    hf_model.config.dtype = config.dtype  # Written by its building; the packed one may have none.
    hf_model.load_state_dict(load_tensors(packed.weights), strict=False)
    model = wrap(
        hf_model.to(packed.device),
        name=packed.name,
        origin=packed.origin,
        tokenizer=tokenizer or read_tokenizer(packed.tokenizer),
        provenance=decode(packed.provenance, {}, {}),
    )
    if model_digest(model) != packed.digest:
        raise EngineError(
            f"{packed.name!r} cannot be built by a worker as it is here: save it to a folder and "
            "load it from there, or use --engine inprocess"
        )
    return model


def _dtype(model: Model) -> str:
    return str(model.dtype).removeprefix("torch.")


def _empty_model(config: Any, dtype: str) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    # Building writes to the configuration.
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=getattr(torch, dtype))


def _plain_weights(model: Model) -> dict[str, Tensor]:
    """Weights by the names of Hugging Face; the bridge has further names for the same."""
    with torch.device("meta"):
        own = _empty_model(model.config, _dtype(model)).state_dict()
    state = model.bridge.original_model.state_dict()
    plain = {name.replace(_WRAPPER, ""): weight for name, weight in state.items()}
    return {name: plain[name].detach().cpu().contiguous().clone() for name in own if name in plain}


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes]:  # noqa: ANN401
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = (path for path in Path(folder).iterdir() if path.is_file())
        return {path.name: path.read_bytes() for path in sorted(files)}


def read_tokenizer(files: Mapping[str, bytes]) -> Any:  # noqa: ANN401
    """Tokenizer from its files; None from none."""
    if not files:
        return None
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
