"""Experiments about sub-networks: smoothness, loss landscape, potential and rank quality; and the
papers' tables as commands."""
