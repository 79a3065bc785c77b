"""Data of the plots of one compared model."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from probes.comparison.heads.profiles import expand_attention
from probes.comparison.model_facts import PlotData
from probes.interventions.sweep import PatchingEffects
from probes.observe.attention import RoleAttention


def measure_plot_data(
    attention: Sequence[RoleAttention],
    roles: tuple[str, ...],
    effects: Mapping[str, PatchingEffects],
) -> PlotData:
    """Attention on the clean prompts of all contrasts, and effects, both on the shared roles."""
    return PlotData(
        *_pooled_attention(attention, roles),
        next(iter(effects.values())).components,
        {c: _expand_to_roles(e.mean.numpy(), e.roles, roles) for c, e in effects.items()},
        {c: _expand_to_roles(e.standard_error.numpy(), e.roles, roles) for c, e in effects.items()},
    )


def _pooled_attention(
    attention: Sequence[RoleAttention], roles: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the clean prompts of all contrasts."""
    # Layer by layer, in double precision: all of a large model's take gigabytes.
    layers = range(attention[0].per_prompt.shape[1])
    means, errors = zip(*(_layer_moments(attention, roles, layer) for layer in layers), strict=True)
    return np.stack(means), np.stack(errors)


def _layer_moments(
    attention: Sequence[RoleAttention], roles: tuple[str, ...], layer: int
) -> tuple[Float[np.ndarray, "head role role_key"], Float[np.ndarray, "head role role_key"]]:
    """Mean and standard error over the prompts of one layer."""
    own = slice(layer, layer + 1)
    each = [expand_attention(a.per_prompt[:, own].numpy(), a.roles, roles) for a in attention]
    values = np.concatenate(each)[:, 0].astype(np.float64)
    count = (~np.isnan(values)).sum(0)
    mean = np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), np.nan)
    variance = np.nansum((values - mean) ** 2, 0) / np.maximum(count * (count - 1), 1)
    return mean, np.where(count > 1, np.sqrt(variance), np.nan)


def _expand_to_roles(
    values: np.ndarray, present_roles: Sequence[str], roles: Sequence[str]
) -> np.ndarray:
    expanded = np.full((values.shape[0], len(roles), values.shape[2]), np.nan)
    expanded[:, [roles.index(role) for role in present_roles]] = values
    return expanded
