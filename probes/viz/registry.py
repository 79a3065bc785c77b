"""Which page and which drawing show a type of result; both register themselves here.

`report` gives a whole page, `figure` the main drawing alone. The modules that register are imported
when the first result asks for them.
"""

from functools import singledispatch
from importlib import import_module
from importlib.util import find_spec

from probes.errors import FigureError
from probes.viz.picture import Picture

_REGISTER = (
    *("reports.comparison", "reports.family_comparison", "reports.trace", "reports.claims"),
    *("reports.rate_distortion", "plots.circuit_diagram", "plots.rate_distortion_plot"),
)


@singledispatch
def report(result: object) -> Picture:
    """Return the page about a result.

    Raises:
        FigureError: No page is registered for its type.
    """
    _import_all(result)
    if report.dispatch(type(result)) is report.dispatch(object):
        raise FigureError(
            f"No page is registered for a {type(result).__name__}: decorate a function that draws "
            "it with probes.viz.registry.report.register"
        )
    return report(result)


@singledispatch
def figure(result: object, **options: object) -> Picture:
    """Return the main drawing of a result.

    Raises:
        FigureError: No drawing is registered for its type.
    """
    _import_all(result)
    if figure.dispatch(type(result)) is figure.dispatch(object):
        raise FigureError(
            f"No drawing is registered for a {type(result).__name__}: decorate a function that "
            "draws it with probes.viz.registry.figure.register"
        )
    return figure(result, **options)


def _import_all(result: object) -> None:
    for name in _REGISTER:
        import_module(f"probes.viz.{name}")
    # A package outside of viz, such as an experiment, keeps its page in its own module `report`.
    own = f"{type(result).__module__.rpartition('.')[0]}.report"
    if own.startswith("probes.") and find_spec(own):
        import_module(own)
