"""A search by a score of the user's own in a run folder: no data, no loss, no fine-tuning."""

from __future__ import annotations

from typing import Any

import keras

from ..nets.given import Given
from ..nets.graph import ChannelGraph
from ..options.scored import Scored
from ..pruning.methods.scored import Score, search
from ..reports import written
from ..reports.outline import of_mask
from ..reports.tables import before_after
from ..utils import progress
from ..utils.keras_files import load_keras
from ..utils.runfiles import PRUNED
from ..utils.runfolder import RunFolder
from .searching import save_finished


def run_scored(
    folder: RunFolder,
    given: Given,
    graph: ChannelGraph,
    score: Score,
    options: Scored,
    inputs: Any,
    *,
    compile: bool,
) -> keras.Model:
    """Searches from wherever an earlier process stopped.

    Writes history.jsonl, search_pruned.keras and result.json, which marks the run as finished.

    Args:
        graph: of `given.core`.
        inputs: a few, float32 [n, ...], on which the written network is compared with that in
            memory.

    Returns:
        The chosen network, read back from its file.

    Raises:
        UserError: as `pruning.methods.scored.search`.
    """
    if not folder.finished:
        running = search(graph, given.finished, score, options, folder, compile=compile)
        mask = running.gates.mask()
        save_finished(folder, PRUNED, given, graph.pruned(mask), inputs)
        first, last = running.history.rows[0], running.history.rows[-1]
        sides = {
            side: {"parameters": row["parameters"], "flops": row["flops"], "score": row["score"]}
            for side, row in (("before", first), ("after", last))
        }
        rows = [
            (title, sides["before"][key], sides["after"][key], spec)
            for title, key, spec in (
                ("parameters", "parameters", ",.0f"),
                ("FLOPs (multiply-accumulates)", "flops", ",.0f"),
                ("score, not fine-tuned", "score", ".4f"),
            )
        ]
        progress.say(before_after(rows))
        more = {"steps": len(running.history.rows) - 1, "network": of_mask(graph, mask)}
        written.close(folder, "result.json", sides | more)
    written.write_if_missing(folder)
    return load_keras(folder.file(PRUNED), compile=False)
