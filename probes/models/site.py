"""models.site."""

from collections.abc import Sequence
from dataclasses import dataclass

from probes.errors import SiteError
from probes.models.model import Model

RESID, RESID_OUT = "hook_resid_pre", "hook_resid_post"


@dataclass(frozen=True, slots=True)
class Site:
    """One place to patch: a layer, a component in it, and the role that says at which positions.

    The component is "resid" (the residual stream that the block reads), "mlp" (what the MLP
    writes), or the number of a head (its `z`). "resid" at the layer after the last is the output.
    """

    layer: int
    component: str | int
    role: str


def joined_roles(*sites: Site) -> dict[str, str]:
    """Say which roles the sites of several join ("x+rest"), as `cross` takes it."""
    return {cell.role: cell.role.replace("+", " ") for cell in sites if "+" in cell.role}


def site_name(site: Site) -> str:
    """Write a cell as "L1.resid@op", "L1.MLP@op" or "L1.H3@op"."""
    kind = {"resid": "resid", "mlp": "MLP"}.get(str(site.component), f"H{site.component}")
    return f"L{site.layer}.{kind}@{site.role}"


COMPONENT_KINDS = ("heads", "mlps", "resid")


def component_sites(model: Model, kinds: Sequence[str], role: str) -> list[tuple[str, Site]]:
    """Name the cells of a model for one role.

    Raises:
        SiteError: A kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in COMPONENT_KINDS]
    if unknown:
        raise SiteError(
            f"Components {unknown} are unknown: choose from {', '.join(COMPONENT_KINDS)}"
        )
    found = []
    for layer in range(model.shape.layers):
        if "resid" in kinds:
            found.append((f"L{layer}.resid", Site(layer, "resid", role)))
        if "heads" in kinds:
            heads = range(model.shape.heads)
            found += [(f"L{layer}.H{head}", Site(layer, head, role)) for head in heads]
        if "mlps" in kinds:
            found.append((f"L{layer}.MLP", Site(layer, "mlp", role)))
    return found
