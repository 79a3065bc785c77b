"""Messages: what the changes of writers bring to the inputs of readers, edge by edge."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from probes.models.layers.norm import Norm


@dataclass(frozen=True, eq=False)
class MessageSum:
    """Sums messages; those of heads go through the norm behind their attention, if any.

    Attributes:
        heads: Heads of each layer.
        post_norms: Norm behind attention of each layer.
        heads_sums: Sum of the heads of each layer in the starting run, which the norm acts on;
            none where no layer has such a norm.
    """

    heads: int
    post_norms: Sequence[Norm]
    heads_sums: Sequence[Float[Tensor, "token d_model"]]

    def add(
        self,
        inputs: Float[Tensor, "circuit input token d_model"],
        messages: Sequence[tuple[Tensor, list[int], Tensor]],
        count: int,
        tokens: tuple[Tensor | slice, Tensor | slice],
    ) -> None:
        """Add to the inputs at some tokens what the first `count` writers' edges bring.

        Tokens are given by their numbers in the inputs, and in the changes. Messages are weights
        "circuit input writer", the writers, and their changes "circuit writer prompt position
        d_model".
        """
        for group in self._writer_groups(count):
            self._add_group(inputs, messages, group, tokens)

    def _writer_groups(self, count: int) -> list[range | None]:
        """Groups of writers whose messages add up: None for all that no post-norm sums.

        Other groups are the heads of a layer.
        """
        each = self.heads + 1
        starts = range(1, count, each) if self.heads_sums else ()
        return [None, *(range(start, start + each - 1) for start in starts)]

    def _add_group(
        self,
        inputs: Tensor,
        messages: Sequence[tuple[Tensor, list[int], Tensor]],
        group: range | None,
        tokens: tuple[Tensor | slice, Tensor | slice],
    ) -> None:
        into, own_tokens = tokens
        total, layer = None, 0 if group is None else group.start // (self.heads + 1)
        for weights, writers, changes in messages:
            used = weights.flatten(0, 1).any(0).tolist()
            own = [n for n, writer in enumerate(writers) if used[n] and self._is_in(writer, group)]
            if not own:
                continue
            # Of most writers, all are multiplied: a copy of large changes costs more.
            is_most = group is None and not self.heads_sums and 2 * len(own) > len(writers)
            if len(own) < len(writers) and not is_most:
                weights, changes = weights[..., own], changes[:, own]
            values = changes.flatten(2, 3)[:, :, own_tokens]
            added = (weights @ values.flatten(2)).unflatten(-1, values.shape[2:])
            if group is None:
                inputs[:, :, into] += added
            else:
                total = added if total is None else total + added
        if total is not None:
            norm, before = self.post_norms[layer], self.heads_sums[layer]
            inputs[:, :, into] += norm(before[own_tokens] + total) - norm(before[own_tokens])

    def _is_in(self, writer: int, group: range | None) -> bool:
        if group is not None:
            return writer in group
        return not self.heads_sums or writer % (self.heads + 1) == 0
