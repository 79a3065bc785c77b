"""Role axis: effects aligned over the roles of all contrasts."""

from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float


def expand_to_roles(
    each: Float[np.ndarray, "prompt head role answer"],
    present_roles: Sequence[str],
    roles: Sequence[str],
) -> Float[np.ndarray, "prompt head feature"]:
    """Effects over all roles, NaN for the roles that the prompts lack."""
    prompts, heads, _, answers = each.shape
    full = np.full((prompts, heads, len(roles), answers), np.nan, dtype=each.dtype)
    full[:, :, [roles.index(role) for role in present_roles]] = each
    return rearrange(full, "prompt head role answer -> prompt head (role answer)")
