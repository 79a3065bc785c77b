"""Relatives of a pretrained model: fewer bits, or a fraction of the weights set to zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probes.compression.derived_model import DerivedModel, load_parent
from probes.compression.pruning.prune import prune
from probes.compression.quantization.quantize import QuantizationSettings, quantize
from probes.errors import ModelError
from probes.models.model import Model, load

GROUP = 32
"""Weights that share a scale, as in int4 of torchao. Embeddings keep 16 bits."""


@dataclass(frozen=True, slots=True)
class RealRelative:
    """A relative of the study.

    Attributes:
        bits: Bits of a weight in the matrices of the blocks; 16 for those of the files.
        zeros: Fraction of these weights that is pruned, by magnitude over all layers.
    """

    bits: int = 16
    zeros: float = 0.0

    def make(self, parent: DerivedModel) -> Model:
        """The relative of a parent, in memory."""
        if self.zeros:
            return load(prune(parent, self.zeros))
        if self.bits < 16:
            settings = QuantizationSettings(group=GROUP)
            return load(quantize(parent, f"rtn-{self.bits}", settings))
        return load(parent)


RELATIVES: Mapping[str, RealRelative] = {
    "16 bits": RealRelative(),
    **{f"{bits} bits": RealRelative(bits) for bits in (8, 4, 3, 2)},
    **{f"{zeros:.0%} pruned": RealRelative(zeros=zeros) for zeros in (0.2, 0.5)},
}
"""Relatives by name; the first is the model itself."""

FULL = next(iter(RELATIVES))


def read_parent(folder: Path, name: str) -> DerivedModel:
    """Pretrained model of a folder of models.

    Raises:
        ModelError: The folder does not hold it.
    """
    if not (folder / name / "config.json").is_file():
        raise ModelError(
            f"No model at {str(folder / name)!r}: give a folder that holds smollm2 "
            "(SmolLM2-135M-Instruct) and qwen (Qwen2.5-0.5B-Instruct)"
        )
    return load_parent(folder / name)
