"""The command line: manners, flags, and what flags name."""
