"""Computation graph of a decoder: what writes to the residual stream, what reads it, and the edges.

    embed ─┬─→ q, k, v of every head ─→ head ─┬─→ MLP ─→ ... ─→ logits
           └──────────── each reader sees the sum of all earlier writers ───┘

An edge runs from a writer (the embedding, a head, an MLP) to a reader (the queries, keys or values
of a head, an MLP, the logits). Heads that share keys and values share those edges. In a graph by
roles, an edge also has the role at which it is read, and the role for which it is read. They
differ only for keys and values.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from probes.errors import CircuitError
from probes.models.site import head_name

Port = Literal["q", "k", "v", "mlp", "logits"]

EMBED, LOGITS = "embed", "logits"
_SHAPE_FIELDS = ("layers", "heads", "kv_heads", "parallel")
_WRITER = re.compile(r"L(\d{1,9})\.(?:H(\d{1,9})|MLP)")
_READER = re.compile(r"L(\d{1,9})\.(?:(H|KV)(\d{1,9})\.([qkv])|MLP)")
_ENDPOINT = r"\s*([\w.-]+?)(?:@([^@]+?))?\s*"
_EDGE = re.compile(f"{_ENDPOINT}(?:->|→){_ENDPOINT}")


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """One edge from a writer to a reader.

    Attributes:
        source: Writer: "embed", a head such as "L0.H1", or an MLP such as "L0.MLP".
        target: Reader: "L2.H3.q" (also k, v), an MLP, or "logits".
        source_role, target_role: Roles; empty where edges are not resolved by roles.
    """

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
        """Edge from text such as "L0.H1->L2.H3.q" or "L0.H1@x->L2.H3.k@answer"."""
        match = _EDGE.fullmatch(text)
        if not match:
            raise CircuitError(f"{text!r} is no edge: write it as in 'L0.H1->L2.H3.q'")
        source, source_role, target, target_role = match.groups()
        return cls(source, target, source_role or "", target_role or "")


@dataclass(frozen=True)
class ComputationGraph:
    """All edges of one model, numbered by reader, then by roles, then by writer.

    Attributes:
        layers, heads, kv_heads: Sizes of the model; with fewer kv_heads than heads, groups of heads
            share keys and values.
        parallel: Whether attention and MLP read the same residual.
        roles: The roles that edges are resolved by; empty if they are not.
        role_pairs: Pairs of roles (read at, read for) in some prompt, in causal order.
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
        """Names of the writers, in the order of the residual stream."""
        names = [EMBED]
        for layer in range(self.layers):
            names += [head_name(layer, head) for head in range(self.heads)] + [f"L{layer}.MLP"]
        return tuple(names)

    @property
    def _kv_name(self) -> str:
        return "H" if self.kv_heads == self.heads else "KV"

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the readers (q of a head, k and v of a head or group, MLP), then logits."""
        names = []
        for layer in range(self.layers):
            names += [f"L{layer}.H{head}.q" for head in range(self.heads)]
            kv_names = [f"L{layer}.{self._kv_name}{n}" for n in range(self.kv_heads)]
            names += [f"{name}.{port}" for port in "kv" for name in kv_names]
            names.append(f"L{layer}.MLP")
        return (*names, LOGITS)

    @cached_property
    def readers_per_layer(self) -> int:
        """Number of readers of a layer."""
        return self.heads + 2 * self.kv_heads + 1

    def port(self, reader: int) -> Port:
        """What a reader feeds."""
        layer, index = divmod(reader, self.readers_per_layer)
        if layer == self.layers:
            return "logits"
        ends = (self.heads, self.heads + self.kv_heads, self.readers_per_layer - 1)
        return ("q", "k", "v", "mlp")[sum(index >= end for end in ends)]

    def upstream_count(self, reader: int) -> int:
        """Number of writers before a reader."""
        layer, port = reader // self.readers_per_layer, self.port(reader)
        same_layer = self.heads if port == "mlp" and not self.parallel else 0
        return 1 + layer * (self.heads + 1) + same_layer

    def role_index_pairs(self, reader: int) -> tuple[tuple[int, int], ...]:
        """Pairs of role indices (read at, read for) of a reader's edges."""
        return tuple(self._role_pair_numbers[self.port(reader)])

    @cached_property
    def _role_pair_numbers(self) -> dict[Port, dict[tuple[int, int], int]]:
        """Position of each pair of role indices among a reader's edges, by port."""
        number = {role: index for index, role in enumerate(self.roles)}
        same = [(index, index) for index in number.values()] or [(0, 0)]
        across = [(number[a], number[b]) for a, b in self.role_pairs] if self.roles else same
        read = [(number[role], number[role]) for role in self.readouts] if self.roles else same
        ports: tuple[Port, ...] = ("q", "k", "v", "mlp", "logits")
        pairs = zip(ports, (same, across, across, same, read), strict=True)
        return {port: {pair: n for n, pair in enumerate(each)} for port, each in pairs}

    @cached_property
    def edge_offsets(self) -> np.ndarray:
        """Number of the first edge of each reader, then the number of all edges."""
        readers = range(len(self.readers))
        counts = [self.upstream_count(n) * len(self.role_index_pairs(n)) for n in readers]
        return np.cumsum([0, *counts])

    @cached_property
    def edge_table(self) -> np.ndarray:
        """Indices "column edge" of source, target, source role and target role."""
        blocks = []
        for reader in range(len(self.readers)):
            upstream = self.upstream_count(reader)
            pairs = np.array(self.role_index_pairs(reader)).reshape(-1, 2)
            source = np.tile(np.arange(upstream), len(pairs))
            roles = np.repeat(pairs, upstream, axis=0).T
            blocks.append(np.stack([source, np.full(len(source), reader), *roles]))
        return np.concatenate(blocks, axis=1)

    def edge(self, index: int) -> Edge:
        """Edge with a number; an IndexError if there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"edge {index} of {len(self)}")
        source, target, *roles = self.edge_table[:, index].tolist()
        names = [self.roles[role] for role in roles] if self.roles else []
        return Edge(self.writers[source], self.readers[target], *names)

    def edges(self) -> Iterator[Edge]:
        """All edges in order."""
        return (self.edge(index) for index in range(len(self)))

    @cached_property
    def _lookup(self) -> tuple[dict[str, int], dict[str, tuple[int, int, dict]], dict[str, int]]:
        """Writers and roles by name; readers with offset, upstream count and pairs of roles."""
        offsets = self.edge_offsets.tolist()
        readers = {
            name: (offsets[n], self.upstream_count(n), self._role_pair_numbers[self.port(n)])
            for n, name in enumerate(self.readers)
        }
        writers = {name: n for n, name in enumerate(self.writers)}
        return writers, readers, {role: n for n, role in enumerate(self.roles or ("",))}

    def index_of(self, edge: Edge) -> int:
        """Number of an edge; a CircuitError if the model has no such edge."""
        return int(self.indices_of([edge])[0])

    def indices_of(self, edges: Iterable[Edge]) -> np.ndarray:
        """Numbers of many edges; see `index_of`."""
        writers, readers, roles = self._lookup
        indices = []
        for edge in edges:
            source = writers.get(edge.source, -1)
            offset, upstream, pairs = readers.get(edge.target, (0, 0, {}))
            pair = pairs.get((roles.get(edge.source_role), roles.get(edge.target_role)))
            if pair is None or not 0 <= source < upstream:
                raise self._impossible(edge)
            indices.append(offset + pair * upstream + source)
        return np.array(indices, dtype=np.int64)

    def indices_in(self, other: "ComputationGraph") -> np.ndarray:
        """Number of each edge in a graph of the same shape for other prompts, or -1."""
        if self == other:
            return np.arange(len(self))
        self._require_same_shape(other)
        own = [other.roles.index(role) if role in other.roles else -1 for role in self.roles]
        blocks = []
        for reader in range(len(self.readers)):
            numbers = other._role_pair_numbers[other.port(reader)]
            upstream, begin = self.upstream_count(reader), int(other.edge_offsets[reader])
            for a, b in self.role_index_pairs(reader):
                number = numbers.get((own[a], own[b]), -1)
                block = begin + number * upstream + np.arange(upstream)
                blocks.append(block if number >= 0 else np.full(upstream, -1))
        return np.concatenate(blocks)

    def _require_same_shape(self, other: "ComputationGraph") -> None:
        values = {name: (getattr(self, name), getattr(other, name)) for name in _SHAPE_FIELDS}
        values["resolved by roles"] = (bool(self.roles), bool(other.roles))
        if found := [f"{name} ({a} and {b})" for name, (a, b) in values.items() if a != b]:
            raise CircuitError(
                f"The graphs differ in {', '.join(found)}: use models of one shape, and resolve "
                "roles in both or in neither"
            )

    def union(self, other: "ComputationGraph") -> "ComputationGraph":
        """Graph with the roles of both; a CircuitError if their shapes differ."""
        if self == other:
            return self
        self._require_same_shape(other)
        roles = list(self.roles)
        for number, role in enumerate(other.roles):
            if role not in roles:  # placed after its predecessor, as in the text
                roles.insert(roles.index(other.roles[number - 1]) + 1 if number else 0, role)
        index = {role: number for number, role in enumerate(roles)}
        pairs = {*self.role_pairs, *other.role_pairs}
        return replace(
            self,
            roles=tuple(roles),
            role_pairs=tuple(sorted(pairs, key=lambda pair: (index[pair[0]], index[pair[1]]))),
            readouts=tuple(sorted({*self.readouts, *other.readouts}, key=index.__getitem__)),
        )

    def writers_fed_by(self, reader: int) -> tuple[int, ...]:
        """The writers that a reader feeds: none for the logits, a group's heads for k and v."""
        layer, index = divmod(reader, self.readers_per_layer)
        first, port = 1 + layer * (self.heads + 1), self.port(reader)
        if port not in ("k", "v"):
            return {"logits": (), "mlp": (first + self.heads,), "q": (first + index,)}[port]
        size, group = self.heads // self.kv_heads, (index - self.heads) % self.kv_heads
        return tuple(range(first + group * size, first + (group + 1) * size))

    def _impossible(self, edge: Edge) -> CircuitError:
        """Error about an edge that the graph does not have."""
        writer, reader = _WRITER.fullmatch(edge.source), _READER.fullmatch(edge.target)
        if edge.source != EMBED and not writer:
            return CircuitError(
                f"{edge.source!r:.80} writes nothing: use 'embed', 'L0.H1' or 'L0.MLP'"
            )
        owner = reader and reader[2] and ("H" if reader[4] == "q" else self._kv_name)
        if edge.target != LOGITS and (not reader or reader[2] != owner):
            return CircuitError(
                f"{edge.target!r:.80} reads nothing in this model: use 'L0.H1.q', "
                f"'L0.{self._kv_name}1.k', 'L0.{self._kv_name}1.v', 'L0.MLP' or 'logits'"
            )
        kv_size = self.heads if reader and reader[4] == "q" else self.kv_heads
        numbers = [("layer", name[1], self.layers) for name in (writer, reader) if name]
        numbers += [("head", writer[2], self.heads)] if writer else []
        numbers += [("head", reader[3], kv_size)] if reader else []
        for axis, number, size in numbers:
            if number and int(number) >= size:
                return CircuitError(
                    f"{edge} names {axis} {number}, and the model has {size}: count from 0"
                )
        roles = (edge.source_role, edge.target_role)
        if not all(bool(role) == bool(self.roles) for role in roles):
            return CircuitError(
                f"The edge {edge} {'lacks' if self.roles else 'has'} a role, and this graph is "
                f"{'' if self.roles else 'not '}resolved by roles: name edges as it does"
            )
        if unknown := [role for role in roles if role and role not in self.roles]:
            return CircuitError(
                f"Role {unknown[0]!r} of {edge} is unknown: {', '.join(self.roles)}"
            )
        writers, readers, _ = self._lookup
        if writers[edge.source] >= readers[edge.target][1]:
            return CircuitError(
                f"The edge {edge} cannot exist: {edge.target} does not come after {edge.source} in "
                "the residual stream. Let edges run forward."
            )
        return CircuitError(
            f"The edge {edge} cannot exist: {edge.target} reads nothing at {edge.source_role!r} "
            f"for {edge.target_role!r}. Only keys and values pass from one role to another, and "
            "only to a later one; the rest stay at their role."
        )
