"""Walk-through: one question, step by step through a model and a relative, by interventions."""
