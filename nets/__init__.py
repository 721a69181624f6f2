"""Keras networks as graphs of channels: gates, mask-aware layers, pruned networks."""
