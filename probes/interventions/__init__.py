"""Activation patching, interchange interventions and the subspaces they find."""
