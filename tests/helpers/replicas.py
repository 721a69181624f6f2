"""The strategies that tests of compiled steps run under."""

import functools

import tensorflow as tf


def one_replica():
    return tf.distribute.get_strategy()


@functools.cache  # the keys of collective operations clash between two strategies of a process
def two_replicas():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
