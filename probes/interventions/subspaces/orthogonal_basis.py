"""Orthonormal directions whose rotation is trained."""

from torch import Tensor, nn

from probes.models.process_state import seeded_init


class OrthogonalBasis(nn.Module):
    """Trainable orthonormal basis."""

    def __init__(self, basis: Tensor, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(basis.T.clone())
        with seeded_init(seed):
            nn.utils.parametrizations.orthogonal(self)

    def basis(self) -> Tensor:
        """Orthonormal rows."""
        return self.weight.T
