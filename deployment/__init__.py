"""Networks out to deployment: formats and their runtimes."""
