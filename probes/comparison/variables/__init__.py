"""Variables in two models: linear maps, cross-model interchange interventions, verdicts."""
