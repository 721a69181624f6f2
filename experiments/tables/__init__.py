"""The papers' tables as grids of commands."""
