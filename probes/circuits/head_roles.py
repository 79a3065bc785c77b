"""Roles of heads: where a head of a circuit writes, and from where it reads, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadRole:
    """The two roles between which a head passes on the largest part of its effect.

    Attributes:
        head: Its name, such as "L2.H3".
        query: The role that it writes for.
        key: The role that it reads from.
        fraction: Part of its absolute effect that passes between the two, 0 to 1.
        attention: Its mean attention from the query role to the key role, 0 to 1.
    """

    head: str
    query: str
    key: str
    fraction: float
    attention: float

    def __str__(self) -> str:
        return f"{self.head}: {self.label}"

    @property
    def label(self) -> str:
        """Both roles, such as "answer ← name"."""
        return f"{self.query} ← {self.key}"

    @property
    def evidence(self) -> str:
        """Both roles with the numbers behind them."""
        return (
            f"{self}: {self.fraction:.0%} of the effect of the head, mean attention "
            f"{self.attention:.2f}"
        )


def with_heads(roles: Sequence[HeadRole], nodes: Sequence[str]) -> tuple[HeadRole, ...]:
    """Those of the heads that are among some nodes, each once."""
    names = {node.split("@")[0] for node in nodes}
    return tuple({role.head: role for role in roles if role.head in names}.values())
