"""Cached, segment-wise evaluation of sub-networks on D_val."""
