"""Supernets: training and ratings."""
