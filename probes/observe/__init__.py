"""What a model does without intervention: activations, attention, logit lens, behavior."""
