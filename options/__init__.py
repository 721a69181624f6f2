"""Every setting, declared once: frozen dataclasses whose fields know bounds, help and flag.

No TensorFlow here, so that `--help` and a mistake in a flag are answered at once.
"""
