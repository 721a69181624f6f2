"""Baseline, search and fine-tuning in a run folder."""
