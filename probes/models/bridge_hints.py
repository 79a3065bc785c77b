"""Names of TransformerLens that a model lacks, and where they are."""

from typing import TYPE_CHECKING

_HERE = {
    "run_with_cache": "pb.capture reads activations",
    "run_with_hooks": "`with model.editing(edits)` edits activations",
    "hooks": "`with model.editing(edits)` edits activations",
    "to_tokens": "pb.tokenize makes batches",
    "cfg": "model.shape has the sizes",
}
"""What takes the place of some names of TransformerLens."""


class BridgeHints:
    """Base of a model: an error for a missing name that the model's `bridge` has."""

    if not TYPE_CHECKING:  # Type checkers would take any name as one that the model has.

        def __getattr__(self, name: str) -> None:
            """Refuse a name that is missing.

            Raises:
                AttributeError: Always; the text says where a name of TransformerLens is.
            """
            # Copies and unpickled models have no bridge at first.
            bridge = vars(self).get("bridge")
            is_missing = not name.startswith("_") and not hasattr(type(self), name)
            # Not `hasattr`: some properties of a bridge stack the weights of all layers.
            if is_missing and bridge is not None and name in dir(bridge):
                text = f"{type(self).__name__} has no {name}: TransformerLens's own is "
                text += f"model.bridge.{name}{'; ' * (name in _HERE)}{_HERE.get(name, '')}"
                raise AttributeError(text, name=name, obj=self)
            super().__getattribute__(name)  # Python's own error, or that of a property.
