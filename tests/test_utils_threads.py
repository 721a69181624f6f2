"""How many networks are computed side by side, and by which threads."""

import threading

import pytest
import tensorflow as tf
from ekg_tf.utils.provenance import cpu_count
from ekg_tf.utils.threads import InTurn, pool, side_by_side


def test_threads_are_for_the_cpu_without_xla(monkeypatch):
    assert side_by_side(compile=False) == cpu_count()
    assert side_by_side(compile=True) == 1
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    assert side_by_side(compile=False) == 1


def test_a_single_worker_is_the_calling_thread():
    asked = []

    def thread(number):
        asked.append(number)
        return threading.get_ident(), number

    with pool(1) as alone:
        assert isinstance(alone, InTurn)
        assert alone.submit(thread, 7).result() == (threading.get_ident(), 7)
        results = alone.map(thread, range(3))
        assert next(results) == (threading.get_ident(), 0)
        assert asked == [7, 0]  # the others aren't asked for yet
        assert [number for _, number in results] == [1, 2]
        with pytest.raises(ZeroDivisionError):
            alone.submit(lambda: 1 / 0)
    with pool(2) as several:
        assert threading.get_ident() not in {one for one, _ in several.map(thread, range(4))}
