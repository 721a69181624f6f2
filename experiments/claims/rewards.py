"""E4: how much the teacher in EKG's reward has to say, proposal by proposal.

    python -m ekg_tf.experiments.claims.rewards --dataset CIFAR10 --data_path DIR \\
        --trained_param baseline.keras --val_held_out 0.05 --d_val held_out --train_path rewards

searches with the teacher `ensemble`. In each step all proposals, also those that the screening
leaves out, are rated by the three rewards of docs/method.md 1, step e: none (the labels' loss
alone), single, ensemble. claim.json says for every two of them how often the best of the screened
proposals is the same, and the mean over the steps of Kendall's tau over all proposals.

D_val is drawn from the examples that --val_held_out keeps apart (--d_val held_out), or from all the
others (trained_on): the network is to be one that was trained with the same --val_held_out.
"""

from ...cli import manners
from ...utils import devices

devices.import_tensorflow()

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import scipy.stats

from ...cli import choices, flags, inputs
from ...dataloader import Dataset, Split, unreadable_named, without_held_out
from ...nets.given import Given
from ...options import recipes
from ...options.budgets import Flops
from ...options.data import Sampling
from ...options.methods import EKG, TEACHERS
from ...options.search import SearchOptions
from ...phases.searching import check
from ...pruning.methods.greedy import GreedySearch
from ...pruning.worth.rewards import Reward
from ...utils.errors import UserError
from ...utils.runfolder import RunFolder
from ..sources import made
from .masking import RESULT
from .plans import PLACES, TRAINED_ON

PAIRS = tuple(itertools.combinations(TEACHERS, 2))


class RatedSearch(GreedySearch):
    """EKG's search that also notes what all three rewards say of every proposal.

    A row of its history has "rated": {"losses": float [proposals, 3], minus the rewards in the
    order of `TEACHERS`; "screened": numbers of the proposals that the search looks at}.
    """

    _rated: dict[str, Any] | None = None

    def _step(self) -> dict | None:
        begin = time.perf_counter()
        reward = Reward(self.task, self.val, self.knowledge.outputs)
        proposals = self._proposals(self._ranked(reward))
        screened = self.candidates.screened(proposals)
        teachers = None, self.history.outputs(0), self.knowledge.outputs
        rewards = [Reward(self.task, self.val, teacher) for teacher in teachers]

        def losses(outputs: Any) -> list[float]:
            return [float(one.all_losses(outputs).mean(dtype=np.float64)) for one in rewards]

        taken = {id(one) for one in screened}
        self._rated = {
            "losses": self.evaluator.each(proposals, losses),
            "screened": [number for number, one in enumerate(proposals) if id(one) in taken],
        }
        return self._take_proposal(screened, reward, {"importance": time.perf_counter() - begin})

    def _record(self, outputs: Any, seconds: dict[str, float], **more: Any) -> dict:
        rated = {} if self._rated is None else {"rated": self._rated}
        return super()._record(outputs, seconds, **rated, **more)


def agreement(rated: Sequence[dict]) -> dict[str, dict[str, float]]:
    """How far the rewards agree over the steps of a search.

    Args:
        rated: of every step, as `RatedSearch` notes it.

    Returns:
        {"a/b": {"same": share of the steps in which both choose the same of several screened
        proposals, "tau": mean Kendall's tau over all proposals, "steps": that have several}}.
    """
    found = {}
    for pair in PAIRS:
        columns = [TEACHERS.index(name) for name in pair]
        same, taus = [], []
        for step in rated:
            losses = np.array(step["losses"], np.float64)[:, columns]
            screened = losses[step["screened"]]
            if len(screened) > 1:
                same.append(float(len(set(screened.argmin(0))) == 1))
            if len(losses) > 2:
                taus.append(float(scipy.stats.kendalltau(*losses.T).statistic))
        known = [tau for tau in taus if np.isfinite(tau)]
        means = {"same": float(np.mean(same)), "tau": float(np.mean(known))}
        found["/".join(pair)] = means | {"steps": len(same)}
    return found


def only_trained_on(data: Dataset, share: float) -> Dataset:
    """The data whose training set is what --val_held_out leaves of it.

    Raises:
        UserError: the images don't lie in memory.
    """
    rest, train = without_held_out(data, share).trained_on, data.train
    if not isinstance(train.inputs, np.ndarray):
        raise UserError(f"{data.name} is read from files: give CIFAR10, CIFAR100 or DIGITS")
    return replace(data, train=Split(train.inputs[rest], train.targets[rest]))


def parser() -> manners.Parser:
    """The flags."""
    parser = manners.Parser(
        prog="python -m ekg_tf.experiments.claims.rewards", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--train_path", type=Path, required=True, help="folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="delete a former run in it")
    parser.add_argument("--d_val", choices=PLACES, required=True, help="what D_val is drawn from")
    parser.add_argument("--search_target_rate", type=flags.fraction, default=0.5, help="FLOPs left")
    flags.add_data(parser)
    flags.add_device(parser)
    flags.add_settings(parser.add_argument_group("D_val"), Sampling)
    return parser


@unreadable_named()
def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    sampling = choices.made(Sampling, args)
    if sampling.held_out is None or args.trained_param is None:
        raise UserError("give --trained_param and the --val_held_out that it was trained with")
    device = choices.device_of(args)
    keras.utils.set_random_seed(sampling.seed)
    data = inputs.data_of(args)
    if args.d_val == TRAINED_ON:
        data = only_trained_on(data, sampling.held_out)
        sampling = replace(sampling, held_out=None)
    given = Given.read(inputs.named_network(args, data))
    options = SearchOptions(Flops(args.search_target_rate), EKG(), sampling)
    options = recipes.search(options, data)
    check(given, data, options, None)
    kept = choices.record(args) | {"do_log": False}
    with RunFolder.open(args.train_path, kept, overwrite=args.overwrite) as folder:
        source = made("ekg", folder, given.core, data, options, device, kind=RatedSearch)
        first, *rows = source.history.rows
        found = agreement([row["rated"] for row in rows])
        start = {key: first[key] for key in ("val_loss", "val_accuracy")}
        folder.write_json(RESULT, {"agreement": found, "start": start})
    print(found)


if __name__ == "__main__":
    manners.run(main)
