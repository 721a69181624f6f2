"""Packages that are asked for only where they are used."""

from importlib import metadata


def how_to_install(extra: str) -> str:
    """The command that brings an extra: of the installed package, or in a checkout."""
    if any(metadata.distributions(name="ekg_tf")):
        return f'pip install "ekg_tf[{extra}]"'
    return f"pip install -r requirements-{extra}.txt"
