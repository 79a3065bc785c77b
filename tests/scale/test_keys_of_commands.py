"""What shapes the result of a command is in its key, also where the command looks it up itself."""

from probes.claims import patterns
from probes.claims import run as claims
from probes.claims.result import ClaimsReport
from probes.claims.run import ClaimSettings, evaluate_claims
from probes.models.model import load
from probes.observe.format import kept
from probes.scale import versions as versions_module
from probes.scale.store import Store
from probes.scale.versions import versions


def test_the_base_model_and_the_fitted_format_are_in_the_key_of_claims(monkeypatch, tmp_path):
    asked = []

    def remembered(settings, label, function, *args):
        asked.append(Store(tmp_path).key(function, args, {}))
        return object.__new__(ClaimsReport)

    def fitted(name):
        return lambda chosen, *_, **__: kept.pattern_in_format(chosen, name, [model])

    model = load("distilled")
    monkeypatch.setattr(claims, "remember_in", remembered)
    for base, format in [(None, "plain"), ("scratch", "plain"), ("full-b", "plain")]:
        evaluate_claims(model, settings=ClaimSettings(format=format), base_model=base)
    for name in ("few-shot-2", "few-shot-4"):
        monkeypatch.setattr(patterns, "pattern_in_format", fitted(name))
        evaluate_claims(model, settings=ClaimSettings(format="auto"))
    assert len(set(asked)) == len(asked) == 5


def test_shipped_data_is_part_of_the_versions(monkeypatch, tmp_path):
    before = versions()
    (tmp_path / "patterns.toml").write_text("changed")
    monkeypatch.setattr(versions_module, "data_folder", lambda: tmp_path)
    versions.cache_clear()
    try:
        assert versions() != before
    finally:
        versions.cache_clear()
