"""The README and the pages of docs, written from docs/results; for us, not shipped."""
