"""The wires of a decoder as plain numbers: what writes to the residual stream, and what reads it.

    embed ─┬─→ q, k, v of every head ─→ head ─┬─→ MLP ─→ ... ─→ logits
           └──────────── each reader sees the sum of all earlier writers ───┘

Every wire runs from a writer (the embedding, a head, an MLP) to a reader (the queries, keys or
values of a head, an MLP, the logits). Heads that share keys and values share those wires. With
roles, a wire also says at which role it is written and at which role its reader writes in turn:
keys and values are read at one role on behalf of another, all else stays at its role.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from probes.errors import CircuitError
from probes.models.site import head_name

Port = Literal["q", "k", "v", "mlp", "logits"]

EMBED, LOGITS = "embed", "logits"
_WRITER = re.compile(r"L(\d+)\.(?:H(\d+)|MLP)")
_READER = re.compile(r"L(\d+)\.(?:(H|KV)(\d+)\.([qkv])|MLP)")
_ENDPOINT = r"\s*([\w.-]+?)(?:@([^@]+?))?\s*"
_EDGE = re.compile(f"{_ENDPOINT}(?:->|→){_ENDPOINT}")


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """One wire: "L0.H1" to "L2.H3.q", and, where resolved, from which role to which."""

    source: str
    target: str
    source_role: str = ""
    target_role: str = ""

    def __str__(self) -> str:
        if not self.source_role:
            return f"{self.source}->{self.target}"
        return f"{self.source}@{self.source_role}->{self.target}@{self.target_role}"

    @classmethod
    def parse(cls, text: str) -> "Edge":
        """Read "L0.H1->L2.H3.q" or "L0.H1@x->L2.H3.k@answer"."""
        found = _EDGE.fullmatch(text)
        if not found:
            raise CircuitError(f"{text!r} is no edge: write it as in 'L0.H1->L2.H3.q'")
        source, source_role, target, target_role = found.groups()
        return cls(source, target, source_role or "", target_role or "")


@dataclass(frozen=True)
class ComputationGraph:
    """All wires of one model: what an edge's number means.

    Attributes:
        layers, heads, kv_heads: The model's; fewer kv_heads than heads are shared by groups.
        parallel: Whether attention and MLP read the same residual.
        roles: The roles that wires are resolved by; none where they are not.
        passages: Pairs of roles (read at, read for) that occur in some prompt, in causal order.
        readouts: The roles at which the answer is read.
    """

    layers: int
    heads: int
    kv_heads: int
    parallel: bool = False
    roles: tuple[str, ...] = ()
    role_pairs: tuple[tuple[str, str], ...] = ()
    readouts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.edge_offsets[-1])

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of what writes, in the order of the residual stream."""
        names = [EMBED]
        for layer in range(self.layers):
            names += [head_name(layer, head) for head in range(self.heads)] + [f"L{layer}.MLP"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of what reads: q of each head, k, v of each head or group, MLP; then logits."""
        shared = "H" if self.kv_heads == self.heads else "KV"
        names = []
        for layer in range(self.layers):
            names += [f"L{layer}.H{head}.q" for head in range(self.heads)]
            for port in "kv":
                names += [f"L{layer}.{shared}{head}.{port}" for head in range(self.kv_heads)]
            names.append(f"L{layer}.MLP")
        return (*names, LOGITS)

    @cached_property
    def readers_per_layer(self) -> int:
        """How many readers a layer has."""
        return self.heads + 2 * self.kv_heads + 1

    def port(self, reader: int) -> Port:
        """Say what a reader feeds."""
        place = reader % self.readers_per_layer
        if reader == self.layers * self.readers_per_layer:
            return "logits"
        ends = (
            self.heads,
            self.heads + self.kv_heads,
            self.readers_per_layer - 1,
            self.readers_per_layer,
        )
        return ("q", "k", "v", "mlp")[sum(place >= end for end in ends)]

    def upstream_count(self, reader: int) -> int:
        """Count the writers that stand before a reader."""
        layer, port = reader // self.readers_per_layer, self.port(reader)
        own = self.heads if port == "mlp" and not self.parallel else 0
        return 1 + layer * (self.heads + 1) + own

    def role_index_pairs(self, reader: int) -> tuple[tuple[int, int], ...]:
        """List the (read at, read for) numbers of roles of a reader's wires."""
        if not self.roles:
            return ((0, 0),)
        number = {role: index for index, role in enumerate(self.roles)}
        port = self.port(reader)
        if port in ("k", "v"):
            return tuple((number[a], number[b]) for a, b in self.role_pairs)
        here = self.readouts if port == "logits" else self.roles
        return tuple((number[role], number[role]) for role in here)

    @cached_property
    def edge_offsets(self) -> np.ndarray:
        """Number of the first wire of each reader; the wires of a pair of roles stand together."""
        counts = [
            self.upstream_count(v) * len(self.role_index_pairs(v)) for v in range(len(self.readers))
        ]
        return np.cumsum([0, *counts])

    @cached_property
    def edge_table(self) -> np.ndarray:
        """The wires "column edge": source, target, source role, target role, as numbers."""
        blocks = []
        for reader in range(len(self.readers)):
            seen, pairs = (
                self.upstream_count(reader),
                np.array(self.role_index_pairs(reader)).reshape(-1, 2),
            )
            source = np.tile(np.arange(seen), len(pairs))
            spread = np.repeat(pairs, seen, axis=0)
            target = np.full(len(source), reader)
            blocks.append(np.stack([source, target, spread[:, 0], spread[:, 1]]))
        return np.concatenate(blocks, axis=1)

    def edge(self, index: int) -> Edge:
        """Name a wire; a number outside raises an IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"edge {index} of {len(self)}")
        source, target, here, there = (int(value) for value in self.edge_table[:, index])
        names = (self.writers[source], self.readers[target])
        return Edge(*names, *((self.roles[here], self.roles[there]) if self.roles else ()))

    def edges(self) -> Iterator[Edge]:
        """Name all wires in order."""
        return (self.edge(number) for number in range(len(self)))

    def index_of(self, edge: Edge) -> int:
        """Find a wire by its name.

        Raises:
            CircuitError: The model has no such wire.
        """
        source, target = self._writer_index(edge), self._reader_index(edge)
        if source >= self.upstream_count(target):
            raise CircuitError(
                f"The edge {edge} cannot exist: {edge.target} stands before {edge.source} in the "
                "residual stream, or beside it. Let edges run forward."
            )
        pairs = self.role_index_pairs(target)
        wanted = (
            self._role_index(edge, edge.source_role),
            self._role_index(edge, edge.target_role),
        )
        if wanted not in pairs:
            raise CircuitError(
                f"The edge {edge} cannot exist: {edge.target} reads nothing at "
                f"{edge.source_role!r} for {edge.target_role!r}. Only keys and values pass from "
                "one role to another, and only to a later one; the rest stay at their role."
            )
        return (
            int(self.edge_offsets[target])
            + pairs.index(wanted) * self.upstream_count(target)
            + source
        )

    def indices_of(self, edges: Iterable[Edge]) -> np.ndarray:
        """Find many wires."""
        return np.array([self.index_of(edge) for edge in edges], dtype=np.int64)

    def indices_in(self, other: "ComputationGraph") -> np.ndarray:
        """Find each wire in a wiring of the same shape and other prompts; -1 where it is lacking.

        Raises:
            CircuitError: The other wiring is of another shape, or resolved where this is not.
        """
        if self == other:
            return np.arange(len(self))
        names = ("layers", "heads", "kv_heads", "parallel")
        unlike = [name for name in names if getattr(self, name) != getattr(other, name)]
        if unlike or bool(self.roles) != bool(other.roles):
            raise CircuitError(
                "Edges of one wiring were looked for in another that differs in "
                f"{', '.join(unlike) or 'whether roles are resolved'}: use models of one shape, "
                "and resolve roles in both or in neither"
            )
        place = {role: number for number, role in enumerate(other.roles)}
        to = np.array([place.get(role, -1) for role in self.roles])
        found = []
        for reader in range(len(self.readers)):
            pairs = {pair: number for number, pair in enumerate(other.role_index_pairs(reader))}
            at = [pairs.get((int(to[a]), int(to[b])), -1) for a, b in self.role_index_pairs(reader)]
            seen, begin = self.upstream_count(reader), int(other.edge_offsets[reader])
            for number in at:
                block = begin + number * seen + np.arange(seen)
                found.append(block if number >= 0 else np.full(seen, -1))
        return np.concatenate(found)

    def writers_fed_by(self, reader: int) -> tuple[int, ...]:
        """List the writers that a reader feeds: none for the logits, a group's heads for k, v."""
        layer, place, port = (
            reader // self.readers_per_layer,
            reader % self.readers_per_layer,
            self.port(reader),
        )
        first = 1 + layer * (self.heads + 1)
        if port == "logits":
            return ()
        if port == "mlp":
            return (first + self.heads,)
        if port == "q":
            return (first + place,)
        each, group = self.heads // self.kv_heads, (place - self.heads) % self.kv_heads
        return tuple(range(first + group * each, first + (group + 1) * each))

    def _writer_index(self, edge: Edge) -> int:
        if edge.source == EMBED:
            return 0
        found = _WRITER.fullmatch(edge.source)
        if not found:
            raise CircuitError(
                f"{edge.source!r} writes nothing: sources are 'embed', 'L0.H1' and 'L0.MLP'"
            )
        layer, head = found.groups()
        self._check_range(edge, "layer", int(layer), self.layers)
        if head is not None:
            self._check_range(edge, "head", int(head), self.heads)
        place = self.heads if head is None else int(head)
        return 1 + int(layer) * (self.heads + 1) + place

    def _reader_index(self, edge: Edge) -> int:
        if edge.target == LOGITS:
            return self.layers * self.readers_per_layer
        found = _READER.fullmatch(edge.target)
        shared = "H" if self.kv_heads == self.heads else "KV"
        if not found or (found[4] and found[2] != ("H" if found[4] == "q" else shared)):
            raise CircuitError(
                f"{edge.target!r} reads nothing: targets of this model are 'L0.H1.q', "
                f"'L0.{shared}1.k', 'L0.{shared}1.v', 'L0.MLP' and 'logits'"
            )
        layer, _, head, port = found.groups()
        self._check_range(edge, "layer", int(layer), self.layers)
        if port is None:
            return (int(layer) + 1) * self.readers_per_layer - 1
        self._check_range(edge, "head", int(head), self.heads if port == "q" else self.kv_heads)
        before = {"q": 0, "k": self.heads, "v": self.heads + self.kv_heads}[port]
        return int(layer) * self.readers_per_layer + before + int(head)

    def _role_index(self, edge: Edge, role: str) -> int:
        if bool(role) != bool(self.roles):
            raise CircuitError(
                f"The edge {edge} {'has a role' if role else 'lacks a role'}, and this wiring is "
                f"{'' if self.roles else 'not '}resolved by roles: name edges as it does"
            )
        if role and role not in self.roles:
            raise CircuitError(f"Role {role!r} of {edge} is unknown: {', '.join(self.roles)}")
        return self.roles.index(role) if role else 0

    def _check_range(self, edge: Edge, axis: str, value: int, size: int) -> None:
        if value >= size:
            raise CircuitError(
                f"{edge} names {axis} {value}, and the model has {size}: count from 0"
            )
