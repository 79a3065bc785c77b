"""models.site."""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.errors import SiteError
from probes.models.model import Model

RESID, RESID_OUT = "hook_resid_pre", "hook_resid_post"


@dataclass(frozen=True, slots=True)
class Cell:
    """One place to patch: a layer, a component in it, and the role that says at which positions.

    The component is "resid" (the residual stream that the block reads), "mlp" (what the MLP
    writes), or the number of a head (its `z`). "resid" at the layer after the last is the output.
    """

    layer: int
    component: str | int
    role: str


def join(*cells: Cell) -> dict[str, str]:
    """Say which roles the sites of several join ("x+rest"), as `cross` takes it."""
    return {cell.role: cell.role.replace("+", " ") for cell in cells if "+" in cell.role}


def site_name(cell: Cell) -> str:
    """Write a cell as "L1.resid@op", "L1.MLP@op" or "L1.H3@op"."""
    kind = {"resid": "resid", "mlp": "MLP"}.get(str(cell.component), f"H{cell.component}")
    return f"L{cell.layer}.{kind}@{cell.role}"


KINDS = ("heads", "mlps", "resid")


def component_cells(model: Model, kinds: Sequence[str], role: str) -> list[tuple[str, Cell]]:
    """Name the cells of a model for one role.

    Raises:
        SiteError: A kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise SiteError(f"Components {unknown} are unknown: choose from {', '.join(KINDS)}")
    found = []
    for layer in range(model.shape.layers):
        if "resid" in kinds:
            found.append((f"L{layer}.resid", Cell(layer, "resid", role)))
        if "heads" in kinds:
            heads = range(model.shape.heads)
            found += [(f"L{layer}.H{head}", Cell(layer, head, role)) for head in heads]
        if "mlps" in kinds:
            found.append((f"L{layer}.MLP", Cell(layer, "mlp", role)))
    return found
