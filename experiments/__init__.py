"""Experiments about sub-networks: smoothness, loss landscape, potential and rank quality."""
