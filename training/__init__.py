"""Training a network in a run folder, evaluation, latency."""
