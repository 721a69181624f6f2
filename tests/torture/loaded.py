"""What processes that are forked have imported already."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import ekg_tf.finetune
import ekg_tf.search
import matplotlib.pyplot
import PIL.Image

import ekg_tf.api
import ekg_tf.commands.prune

__all__ = ["PIL", "ekg_tf", "matplotlib"]
