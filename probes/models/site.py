"""Sites: addresses of components in a model, such as "L0.H1", "L1.MLP" or "L2.resid@op"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from probes.errors import SiteError

RESID, RESID_OUT = "hook_resid_pre", "hook_resid_post"
COMPONENT_KINDS = ("heads", "mlps", "resid")
_SITE = re.compile(r"L(\d{1,9})\.(?:H(\d{1,9})|(MLP|resid))(?:@(.+))?")


@dataclass(frozen=True, slots=True)
class Site:
    """A component of one layer, at the positions of one role.

    Attributes:
        layer: Block, from 0. "resid" at the number of layers is the output of the last block.
        component: "resid" (input of the block), "mlp" (output of the MLP), or the number of a
            head (its `z`).
        role: Role that selects positions; joined roles are "x+rest"; "" for all positions.
    """

    layer: int
    component: str | int
    role: str = ""

    def __str__(self) -> str:
        return f"{self.component_name}@{self.role}" if self.role else self.component_name

    @property
    def component_name(self) -> str:
        """Address without the role, such as "L0.H1"."""
        names = {"resid": "resid", "mlp": "MLP"}
        return f"L{self.layer}.{names.get(str(self.component), f'H{self.component}')}"

    @property
    def hook_name(self) -> str:
        """TransformerLens hook of the activation; a head is one slice of `hook_z`."""
        hooks = {"resid": RESID, "mlp": "hook_mlp_out"}
        return f"blocks.{self.layer}.{hooks.get(str(self.component), 'attn.hook_z')}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Parse "L0.H1", "L1.MLP" or "L2.resid@op".

        Raises:
            SiteError: The text is not an address.
        """
        match = _SITE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise SiteError(
                f"{text!r} is not a site: write it as 'L0.H1', 'L1.MLP' or 'L2.resid@op'"
            )
        layer, head, kind, role = match.groups()
        return cls(int(layer), int(head) if head else kind.lower(), role or "")

    @classmethod
    def matches(cls, text: str) -> bool:
        """Whether the text is an address."""
        return isinstance(text, str) and _SITE.fullmatch(text) is not None


def head_name(layer: int, head: int) -> str:
    """Address of a head, such as "L0.H1"."""
    return str(Site(layer, head))


def head_names(layers: int, heads: int) -> tuple[str, ...]:
    """Addresses of all heads, layer by layer."""
    return tuple(head_name(layer, head) for layer in range(layers) for head in range(heads))


def parse_head(name: str) -> tuple[int, int]:
    """Layer and number of a head.

    Raises:
        SiteError: The name is not the address of a head.
    """
    site = Site.parse(name) if Site.matches(name) else None
    if site is None or not isinstance(site.component, int) or site.role:
        raise SiteError(f"{name!r} is not a head: write it as 'L2.H3'")
    return site.layer, site.component


def joined_roles(*sites: Site) -> dict[str, str]:
    """Joined roles of the sites, such as {"x+rest": "x rest"}, for `run_interchange_pairs`."""
    return {site.role: site.role.replace("+", " ") for site in sites if "+" in site.role}


def component_sites(layers: int, heads: int, kinds: Sequence[str], role: str) -> list[Site]:
    """Sites of all components of some kinds ("heads", "mlps", "resid"), layer by layer.

    Raises:
        SiteError: A kind is unknown.
    """
    unknown = [kind for kind in kinds if kind not in COMPONENT_KINDS]
    if unknown:
        raise SiteError(
            f"Components {unknown} are unknown: choose from {', '.join(COMPONENT_KINDS)}"
        )
    sites = []
    for layer in range(layers):
        if "resid" in kinds:
            sites.append(Site(layer, "resid", role))
        if "heads" in kinds:
            sites += [Site(layer, head, role) for head in range(heads)]
        if "mlps" in kinds:
            sites.append(Site(layer, "mlp", role))
    return sites
