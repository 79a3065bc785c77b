"""Whole commands and the store: where it is, and what must not be kept in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from probes.errors import StoreError
from probes.models.model import Model
from probes.models.run_checks import hook_count
from probes.plan import PlannedSettings
from probes.prompts.tokens.once import tokenize_once
from probes.scale.store import Store, flat_values

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def open_store(place: str | Path | Store | None) -> Iterator[Store | None]:
    """Open a store by its folder, and note what is used inside as one run; none without a place."""
    if place is None:
        yield None
        return
    with (place if isinstance(place, Store) else Store(place)).running() as store:
        yield store


def remember_command(
    store: Store, label: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Result of a whole command, as `Store.remember` gives it.

    Raises:
        StoreError: A model has hooks of the user, which no key would name.
    """
    for part in flat_values((function, args)):
        if isinstance(part, Model) and hook_count(part):
            raise StoreError(
                f"{part.name} has {hook_count(part)} hooks, which the store cannot tell from none: "
                "remove them (model.bridge.reset_hooks()), or use no store"
            )
    return store.remember(label, function, *args, **kwargs)


def remember_in(
    settings: PlannedSettings,
    label: str,
    function: Callable[P, T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Result of a whole command in the store of its settings; prompts are tokenized once in it.

    With a budget it is measured, because the settings that keep to it depend on the machine.
    """
    with open_store(settings.run) as store, tokenize_once():
        if store is None or settings.budget is not None:
            return function(*args, **kwargs)
        return remember_command(store, label, function, *args, **kwargs)
