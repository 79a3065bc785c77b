"""Plans against what the commands take: CPU seconds and peak memory.

    python -m benchmarks.plans trace MODEL [--pattern NAME] [--budget 10m]
    python -m benchmarks.plans compare MODEL RELATIVE [--pattern NAME] [--budget 10m]
    python -m benchmarks.plans curve MODEL RELATIVE… [--bases 200] [--noise 3] [--budget 10m]

RELATIVE may be "int4" or another scheme, the quantized model, or "0.5", the pruned one.
"""

import argparse
import resource
import time
from functools import partial

import torch

from probes.circuits.trace import TraceSettings, trace
from probes.comparison.compare import compare
from probes.comparison.rate_distortion.measure import RateDistortionSettings, rate_distortion
from probes.comparison.setup.references import ComparisonSettings
from probes.compression.pruning.prune import prune
from probes.compression.quantization.quantize import quantize
from probes.models.model import Model, load
from probes.plan import Plan, parse_duration


def main() -> None:
    """Print the plan, then what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["trace", "compare", "curve"])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pattern", default="take-away")
    parser.add_argument("--contrast", default="", help="The only contrast that is traced.")
    parser.add_argument("--budget", default="")
    parser.add_argument("--bases", type=int, default=200)
    parser.add_argument("--noise", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started: list[tuple[float, Plan]] = []

    def note(plan: Plan) -> None:
        print(*plan.lines(), sep="\n", flush=True)
        started.append((time.process_time(), plan))

    budget = parse_duration(given.budget) if given.budget else None
    model = load(given.models[0])
    if given.command == "trace":
        contrasts = (given.contrast,) if given.contrast else ()
        settings = TraceSettings(contrasts=contrasts, budget=budget, on_plan=note)
        run = partial(trace, model, given.pattern, settings=settings)
    elif given.command == "compare":
        settings = ComparisonSettings(budget=budget, on_plan=note)
        run = partial(compare, model, _relative(model, given.models[1]), given.pattern, settings)
    else:
        settings = RateDistortionSettings(
            bases=given.bases, noise_copies=given.noise, budget=budget, on_plan=note
        )
        relatives = [_relative(model, name) for name in given.models[1:]]
        run = partial(rate_distortion, model, relatives, given.pattern, settings)
    print(*run().summary(), sep="\n")
    (start, plan), peak = started[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken = time.process_time() - start
    print(f"planned {plan.seconds:.0f} s and {plan.memory / 1e9:.1f} GB")
    print(f"taken {taken:.0f} CPU-s ({taken / plan.seconds - 1:+.0%}) and {peak / 1e9:.1f} GB")


def _relative(model: Model, name: str) -> Model:
    """A model by its name, or the quantized or pruned one."""
    if name.replace(".", "").isdigit():
        return prune(model, float(name)).to_model()
    if name in ("nf4", "bnb-int8") or name.startswith(("int", "rtn-")):
        return quantize(model, name).to_model()
    return load(name)


if __name__ == "__main__":
    main()
