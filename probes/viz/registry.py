"""Registry of the page (`report`) and the main drawing (`figure`) of each type of result.

Modules register themselves. They are imported when the first result asks for them.
"""

from functools import singledispatch
from importlib import import_module
from importlib.util import find_spec

from probes.errors import FigureError
from probes.viz.picture import Picture

_MODULES = (
    *("reports.comparison", "reports.family_comparison", "reports.trace", "reports.trace_pair"),
    *(
        "reports.claims",
        "reports.rate_distortion",
        "reports.question",
        "reports.walkthrough.page",
        "reports.format_fit",
        "reports.token_similarity",
        "plots.circuit.diagram",
        "plots.rate_distortion_plot",
    ),
)


@singledispatch
def report(result: object) -> Picture:
    """Page of a result.

    Raises:
        FigureError: No page is registered for its type.
    """
    _import_all(result)
    if report.dispatch(type(result)) is report.dispatch(object):
        raise _unregistered(result, "page", "report")
    return report(result)


@singledispatch
def figure(result: object, **options: object) -> Picture:
    """Main drawing of a result.

    Raises:
        FigureError: No drawing is registered for its type.
    """
    _import_all(result)
    if figure.dispatch(type(result)) is figure.dispatch(object):
        raise _unregistered(result, "drawing", "figure")
    return figure(result, **options)


def _unregistered(result: object, kind: str, function: str) -> FigureError:
    return FigureError(
        f"No {kind} is registered for a {type(result).__name__}: decorate a function that makes it "
        f"with probes.viz.registry.{function}.register"
    )


def _import_all(result: object) -> None:
    for name in _MODULES:
        import_module(f"probes.viz.{name}")
    # A package outside of viz, such as an experiment, has its page in its module `report`.
    own = f"{type(result).__module__.rpartition('.')[0]}.report"
    if own.startswith("probes.") and find_spec(own):
        import_module(own)
