"""Page of the contract suite."""

from probes.testing.contract.check_result import CheckState, ModelCheck, ModelChecks
from probes.viz import registry
from probes.viz.blocks import Note, Table, TableCell, Tone
from probes.viz.page import Section, page
from probes.viz.picture import Picture

_TONES: dict[CheckState, Tone] = {"pass": "good", "refused": "muted", "fail": "bad"}


@registry.report.register
def checks_page(result: ModelChecks) -> Picture:
    """Page of several models, a table for each."""
    verdicts = [Note(one.summary()[0], "bad" if one.failed else "good") for one in result.checks]
    return page("Contract suite", [_section(one) for one in result.checks], verdicts)


@registry.report.register
def check_page(result: ModelCheck) -> Picture:
    """Page of one model."""
    return checks_page(ModelChecks((result,)))


def _section(check: ModelCheck) -> Section:
    rows = [
        (one.check, TableCell(one.state, _TONES[one.state]), one.detail) for one in check.outcomes
    ]
    table = Table(("check", "state", "detail"), rows, align="lll")
    return check.model, check.architecture, [table]
