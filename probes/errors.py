"""Errors that a user can mend: each says what, what was found, and what to do."""


class ProbeError(Exception):
    """A mistake in what the user gave, not in the package."""


class PatternError(ProbeError):
    """A pattern, slot or pair file that is unknown or malformed."""


class MatchError(ProbeError):
    """A text that does not fit a pattern."""


class TokenizerError(ProbeError):
    """A tokenizer that cannot do what the kit needs."""


class OutcomeError(ProbeError):
    """Answers that cannot be told apart at the read-out."""


class BatchError(ProbeError):
    """Prompts that cannot be put in one batch: none at all, or one too long."""


class ModelError(ProbeError):
    """A model that cannot be found, loaded or trusted."""


class SiteError(ProbeError):
    """An address that the model does not have."""


class FigureError(ProbeError):
    """A picture that cannot be drawn or saved as asked."""


class CircuitError(ProbeError):
    """An edge, node or circuit that the model cannot have."""


class GateError(ProbeError):
    """A circuit was asked for of a behavior that the model does not have."""


class EquivalenceError(ProbeError, AssertionError):
    """Two models are not surely equal: a failed test, not a mistake of the user's."""
