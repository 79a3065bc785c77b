"""Errors of the user's input: each names the problem, the value found, and the fix."""


class ProbeError(Exception):
    """An error in the user's input."""


class PatternError(ProbeError):
    """A pattern, slot or pair file that is unknown or malformed."""


class MatchError(ProbeError):
    """A text that does not fit a pattern."""


class TokenizerError(ProbeError):
    """A tokenizer without character offsets, or none at all."""


class OutcomeError(ProbeError):
    """Answers that begin with the same token at the readout."""


class BatchError(ProbeError):
    """Prompts that do not fit into one batch: none at all, or one too long."""


class OutOfMemoryError(BatchError):
    """A single prompt that does not fit into the memory of the device."""


class ModelError(ProbeError):
    """A model that cannot be found, loaded or trusted."""


class SiteError(ProbeError):
    """An address that the model does not have."""


class FigureError(ProbeError):
    """A picture or file that cannot be drawn or saved."""


class StoreError(ProbeError):
    """A store of finished work that cannot be read or written, or a value it cannot hold."""


class EngineError(ProbeError):
    """An engine that cannot run, or work that its workers did not return."""


class ResultError(ProbeError):
    """A saved result that cannot be read."""


class CircuitError(ProbeError):
    """An edge, node or circuit that the model cannot have."""


class GateError(ProbeError):
    """A circuit of a behavior that the model does not have."""


class BudgetError(ProbeError):
    """A budget that is no duration, or below what a command needs."""


class EquivalenceError(ProbeError, AssertionError):
    """Two models are not shown to be equivalent: a failed test."""


class NotTestedError(EquivalenceError):
    """A test of equivalence had no mechanism to test: it cannot pass."""
