"""Patterns of the claims: the one with the behavior, and shipped ones that are related to it."""

from probes.claims.plan import ClaimSettings
from probes.claims.solved_items import SolvedItems, solved_items
from probes.errors import GateError
from probes.models.model import Model
from probes.observe.format.kept import pattern_in_format
from probes.observe.gate import gate
from probes.observe.result import Gate, GateCriterion
from probes.prompts.catalog import list_patterns
from probes.prompts.catalog import pattern as find_pattern
from probes.prompts.format.examples import formatted
from probes.prompts.format.prompt_format import AUTO
from probes.prompts.interchange_pairs import sample_interchange_pairs
from probes.prompts.pattern import Pattern

_DECLARATIVE_SUFFIX = "-told"
_OPERATION_FREE_PATTERNS = {"take-away": "taken", "get-more": "gotten"}


def resolve_format(model: Model, pattern: Pattern, settings: ClaimSettings) -> str:
    """Name of the prompt format; "auto" is the one that was fitted for the model and kept."""
    if settings.format != AUTO:
        return settings.format
    return str(pattern_in_format(pattern, AUTO, [model], seed=settings.seed).wrapper.format)


def pattern_with_behavior(
    model: Model,
    pattern: str | Pattern,
    format: str,
    *,
    criterion: GateCriterion | None,
    seed: int,
) -> SolvedItems:
    """Pattern in a format, or that of the same facts as statements if only its gates are open.

    Where a gate is partial, it is the part of the pattern that the model solves, if there is one.

    Raises:
        GateError: The model does not have the behavior.
        PatternError: The outcomes of the pattern coincide, or it has too few words.
    """
    plain = find_pattern(pattern) if isinstance(pattern, str) else pattern
    chosen = pattern_in_format(plain, format, [model], seed=seed)
    # Refuses patterns whose outcomes coincide.
    sample_interchange_pairs(chosen, 1, tokenizers=(model.tokenizer,), seed=seed)
    gates = gate(model, chosen, seed=seed, criterion=criterion)
    if all(one.is_passed for one in gates):
        return _solved_part(model, chosen, gates, seed)
    statements = statement_pattern(chosen) if isinstance(pattern, str) else None
    if statements is not None:
        statement_gates = gate(model, statements, seed=seed, criterion=criterion)
        if all(one.is_passed for one in statement_gates):
            return _solved_part(model, statements, statement_gates, seed)
    closed = next(one for one in gates if not one.has_behavior)
    if closed.state == "too few to tell":
        raise GateError(closed.too_few_reason)
    raise GateError(
        f"{closed.closed_reason} There is nothing to test: choose a model or a pattern whose gate "
        "is open, or the gate none."
    )


def _solved_part(model: Model, pattern: Pattern, gates: tuple[Gate, ...], seed: int) -> SolvedItems:
    """What a model solves of a pattern whose gates are passed; all of it if they are open."""
    is_partial = any(one.state == "partial" for one in gates)
    part = solved_items(model, pattern, seed=seed) if is_partial else None
    return part or SolvedItems(pattern, gates, "")


def has_behavior(model: Model, pattern: Pattern, seed: int) -> bool:
    """Whether the gates of all answers are open or partial."""
    return all(one.has_behavior for one in gate(model, pattern, seed=seed))


def statement_pattern(pattern: Pattern) -> Pattern | None:
    """Shipped pattern of the same facts as statements, in the same format."""
    return _shipped(pattern.name + _DECLARATIVE_SUFFIX, pattern)


def operation_free_pattern(pattern: Pattern) -> Pattern | None:
    """Shipped pattern that asks for the operand alone, in the same format."""
    suffix = _suffix(pattern)
    name = _OPERATION_FREE_PATTERNS.get(pattern.name.removesuffix(suffix))
    return _shipped(name + suffix, pattern) if name and _is_shipped(pattern) else None


def two_object_pattern(pattern: Pattern) -> Pattern | None:
    """Shipped pattern with two objects and the same questions, in the same format."""
    suffix = _suffix(pattern)
    same = _is_shipped(pattern) and _shipped(f"take-away{suffix}", pattern)
    if not same or pattern.templates != same.templates:
        return None
    return _shipped(f"distractor{'' if pattern.operation == 'minus' else '-more'}{suffix}", pattern)


def _shipped(name: str, like: Pattern) -> Pattern | None:
    """Shipped pattern of a name in the format of another one."""
    known = list_patterns().get(name)
    return known and formatted(known, like.wrapper.format)


def _is_shipped(pattern: Pattern) -> bool:
    return _shipped(pattern.name, pattern) == pattern


def _suffix(pattern: Pattern) -> str:
    return _DECLARATIVE_SUFFIX if pattern.name.endswith(_DECLARATIVE_SUFFIX) else ""
