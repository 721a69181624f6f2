"""`python -m ekg_tf.experiments.claims`."""

from ...cli import manners
from .run import main

if __name__ == "__main__":
    manners.run(main)
