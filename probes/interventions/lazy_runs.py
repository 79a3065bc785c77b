"""Runs that are recorded when they are first read, and roles that are patched together."""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from probes.errors import SiteError
from probes.interventions.cached_run import CachedRun


def join_roles(
    masks: Mapping[str, Bool[Tensor, "prompt position"]], joined: Mapping[str, str]
) -> dict[str, Bool[Tensor, "prompt position"]]:
    """Positions of roles, and of several together, named as in {"op+y": "op y"}.

    Raises:
        SiteError: A role that is to be joined is unknown.
    """
    every = dict(masks)
    for name, parts in joined.items():
        if unknown := set(parts.split()) - set(masks):
            raise SiteError(f"Roles {sorted(unknown)} are unknown: known are {', '.join(masks)}")
        every[name] = torch.stack([masks[part] for part in parts.split()]).any(0)
    return every


class LazyRuns(Mapping[str, CachedRun]):
    """Runs by name. Each is recorded when it is first read, so that an unread one costs nothing."""

    def __init__(self, recorders: Mapping[str, Callable[[], CachedRun]]) -> None:
        self._recorders, self._runs = recorders, dict[str, CachedRun]()

    def __getitem__(self, name: str) -> CachedRun:
        if name not in self._runs:
            self._runs[name] = self._recorders[name]()
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recorders)

    def __len__(self) -> int:
        return len(self._recorders)
