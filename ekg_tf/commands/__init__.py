"""The commands of `ekg-tf` that have no script at the top."""
