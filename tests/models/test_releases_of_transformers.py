"""Canary: what the kit needs of the installed release of transformers."""

import pytest
import torch

from probes.interventions.cached_run import record_run
from probes.testing.tiny_models import KINDS, OTHER_KINDS, POST_NORM_KINDS, tiny


@pytest.mark.parametrize("kind", [*KINDS, *POST_NORM_KINDS, *OTHER_KINDS])
def test_every_block_uses_the_cache_that_it_is_given(kind):
    """Releases rename the cache's argument; a block that misses it attends to new tokens alone."""
    ids = torch.arange(1, 13).view(2, 6)
    model, readout = tiny(kind), torch.full((2, 1), 5)
    run = record_run(model, ids, torch.ones_like(ids).bool(), readout, for_restarts=True)
    torch.testing.assert_close(run.run_from(2, run.resid[0][:, 2:]), run.resid[-1][:, 2:])
