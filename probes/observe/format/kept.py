"""Kept formats: the prompt format of a pattern in a model, as it was fitted."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from probes.errors import GateError, ResultError
from probes.files import formats_file, write_atomic
from probes.models.model import Model
from probes.observe.format.fit import FitSettings, fit_format
from probes.observe.format.result import FormatFit
from probes.prompts.format.chat import require_template
from probes.prompts.format.examples import formatted
from probes.prompts.format.prompt_format import AUTO, PLAIN_NAME
from probes.prompts.pattern import Pattern
from probes.scale.encoding import model_digest
from probes.scale.versions import package_version


def pattern_in_format(
    pattern: Pattern,
    format: str,
    models: Sequence[Model],
    *,
    seed: int = 0,
    references: Sequence[Model] = (),
) -> Pattern:
    """Pattern in a format that all models can read.

    Args:
        pattern: Pattern; one that is in a format already stays in it.
        format: Name of a format, or "auto" for the one that was fitted for these models and kept;
            if there is none, it is fitted now.
        models: Models that read the prompts.
        seed: Seed of the fit.
        references: Other models that read them; no format is fitted for these.

    Raises:
        GateError: "auto", and no format opens the gate in all models.
        PatternError: The format is unknown, or the pattern has too few words for it.
        TokenizerError: A chat format, and a model without a chat template.
    """
    if format == PLAIN_NAME:
        return pattern
    if format == AUTO:
        format = _auto_format(pattern, models, seed)
    chosen = formatted(pattern, format)
    if chosen.wrapper.format.chat:
        for model in (*models, *references):
            require_template(model.tokenizer, model.name)
    return chosen


def save_fit(fit: FormatFit, pattern: Pattern, models: Sequence[Model]) -> None:
    """Keep the selected format for these models and this pattern; see `files.formats_file`."""
    path, key, gate = formats_file(), _fit_key(pattern, models), fit.weakest
    entries = [entry for entry in _read_entries() if entry["key"] != key]
    entries.append(
        {
            "key": key,
            "models": list(fit.models),
            "pattern": fit.pattern,
            "format": fit.selected if fit.found else "",
            "gate": fit.state,
            "score": round(gate.score.value, 4) if gate else None,
            "heuristic_accuracy": round(gate.heuristic_accuracy, 4) if gate else None,
            "prompts": fit.prompts,
            "seed": fit.seed,
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(entries, indent=1).encode())


def kept_format(pattern: Pattern, models: Sequence[Model]) -> str | None:
    """Kept format of these models together; "" where none opens the gate, None where none is kept.

    Raises:
        ResultError: The file of kept formats is broken.
    """
    key = _fit_key(pattern, models)
    return next((entry["format"] for entry in _read_entries() if entry["key"] == key), None)


def _auto_format(pattern: Pattern, models: Sequence[Model], seed: int) -> str:
    trained = [model for model in models if not model.origin.startswith("random-init")] or models
    kept = kept_format(pattern, trained)
    if kept is None:
        # What opens the gate of one may open that of all.
        single = dict.fromkeys(kept_format(pattern, [model]) or "" for model in trained)
        fit, names = None, tuple(name for name in single if name)
        if names and len(trained) > 1:
            fit = fit_format(trained, pattern, FitSettings(formats=names, seed=seed))
        if fit is None or not fit.found:
            fit = fit_format(trained, pattern, FitSettings(seed=seed))
        save_fit(fit, pattern, trained)
        kept = fit.selected if fit.found else ""
    if not kept:
        raise GateError(
            f"No format opens the gate of {pattern.name!r} in "
            f"{' and '.join(model.name for model in trained)}: run probes fit to see those that "
            "were tried, or choose another model or pattern"
        )
    return kept


def _fit_key(pattern: Pattern, models: Sequence[Model]) -> str:
    """Hash of the weights and tokenizers of the models, of the pattern, and of this version.

    All words and pairs of the pattern count, which its `repr` leaves out. Names and origins of
    models do not: models in memory share one, and folders are trained anew.
    """
    digests = sorted(
        model_digest(replace(model, name="", origin="", provenance=None)) for model in models
    )
    parts = (digests, repr(asdict(pattern)), package_version())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _read_entries() -> list[dict[str, Any]]:
    path = formats_file()
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(e["key"], str) and isinstance(e["format"], str) for e in entries):
            return entries
        reason = "a key or a format is no text"
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ResultError(
        f"{str(path)!r} holds no formats ({reason}): remove it, and run probes fit again"
    )
