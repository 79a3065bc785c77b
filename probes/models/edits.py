"""Edits of activations by hook name or by site."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from probes.errors import SiteError
from probes.models.site import RESID_OUT, Site

Edit = Callable[[Tensor], Tensor | None]


def hook_edit(
    model: str,
    bridge: Any,  # noqa: ANN401
    size: tuple[int, int],
    name: str,
    edit: Edit,
) -> tuple[str, Callable[..., Tensor | None]]:
    """Hook name and checked edit of a site or hook name.

    Raises:
        SiteError: The model has no such activation.
    """
    if not callable(edit):
        raise SiteError(
            f"The edit of {name!r:.200} is {edit!r:.200}: give a function of the activation, such "
            "as torch.zeros_like"
        )
    if Site.matches(name):
        name, edit = _site_edit(model, size, name, edit)
    if name not in bridge.hook_dict or bridge._gated_hook_reason(name) is not None:
        near = difflib.get_close_matches(name, bridge.hook_dict, n=3, cutoff=0.4)
        raise SiteError(
            f"{model} has no activation {name!r:.200}, or does not compute it by default; names "
            f"close to it: {', '.join(near) or 'none'}. Use a name of this model."
        )
    return name, partial(apply_edit, name, edit)


def _site_edit(model: str, size: tuple[int, int], name: str, edit: Edit) -> tuple[str, Edit]:
    """Hook name and full-tensor edit of a site such as "L1.H0"; size is (layers, heads)."""
    site, (layers, heads) = Site.parse(name), size
    is_output = site.component == "resid" and site.layer == layers
    if site.role:
        raise SiteError(f"{name!r} has a role: leave it out, since an edit takes all positions")
    if site.layer >= layers and not is_output:
        raise SiteError(f"{model} has no {name!r}: it has layers 0 to {layers - 1}")
    if not isinstance(head := site.component, int):
        last = f"blocks.{layers - 1}.{RESID_OUT}"
        return (last if is_output else site.hook_name), edit
    if head >= heads:
        raise SiteError(f"{model} has no {name!r}: it has heads 0 to {heads - 1}")

    def edit_head(value: Tensor) -> Tensor | None:
        if value.ndim != 4 or value.shape[2] != heads:
            raise SiteError(
                f"{model} has no {name!r}: its heads are not an axis of {site.hook_name}, which is "
                f"{tuple(value.shape)}. Edit the whole activation by that name."
            )
        new = apply_edit(name, edit, value[:, :, head], None)
        if new is None:
            return None
        value = value.clone()
        value[:, :, head] = new
        return value

    return site.hook_name, edit_head


def apply_edit(name: str, edit: Edit, value: Tensor, hook: object) -> Tensor | None:
    """Replacement of an activation, checked for shape and dtype."""
    # Tensors of inference mode count no versions.
    before = value.clone() if value.is_inference() else value._version
    new = edit(value)
    if new is None and _has_changed(value, before):
        raise SiteError(
            f"An edit of {name!r} changed its activation in place and returned None: return the "
            "changed tensor, or change a clone to keep the activation"
        )
    if new is None:
        return None
    if not isinstance(new, Tensor):
        raise SiteError(
            f"An edit of {name!r} returned {type(new).__name__}: return a tensor of shape "
            f"{tuple(value.shape)}, or None to keep the activation"
        )
    kinds = [(tuple(one.shape), one.dtype, one.device) for one in (new, value)]
    if kinds[0] != kinds[1]:
        found, wanted = (f"{shape} {dtype} on {device}" for shape, dtype, device in kinds)
        raise SiteError(
            f"An edit of {name!r} must keep shape, dtype and device: {found} found, {wanted} "
            "wanted. Return that, or None."
        )
    return new


def _has_changed(value: Tensor, before: Tensor | int) -> bool:
    """Whether an activation was changed in place, given its copy or version from before."""
    if isinstance(before, int):
        return value._version != before
    return not bool(((value == before) | (value.isnan() & before.isnan())).all())
