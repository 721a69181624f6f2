"""Both phases in one run folder: search and bank, then fine-tuning and report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..dataloader import Dataset, without_held_out
from ..nets.given import Given
from ..options import recipes
from ..options.bank import NO_BANK, Bank
from ..options.finetuning import FineTuning
from ..options.search import SearchOptions
from ..options.training import Training
from ..reports.finetuning import report, tested
from ..reports.search import print_summary
from ..training.task import Task
from ..training.trainer import NO_EXTRAS, Extras, check_batch
from ..utils import progress
from ..utils.devices import Device
from ..utils.runfiles import PRUNED
from ..utils.runfolder import RunFolder
from .dry_run import Wanted
from .finetuning import run_finetuning
from .searching import check, run_search


@dataclass(frozen=True)
class Plan:
    """The settings of both phases; `bank` None: none is built."""

    search: SearchOptions
    bank: Bank | None
    finetuning: FineTuning
    training: Training

    def resolved(self, facts: recipes.Facts, *, lamb: bool = False) -> Plan:
        """The plan with the defaults of a data set; `lamb` as of `recipes.training`."""
        return replace(
            self,
            search=recipes.search(self.search, facts),
            finetuning=recipes.finetuning(self.finetuning, facts),
            training=recipes.training(self.training, facts, lamb=lamb),
        )

    def wanted(self, baseline: Training | None = None, until: str = "test") -> Wanted:
        """What a dry run of it looks at.

        Args:
            baseline: its training, where it is part of the run. until: the last phase.
        """
        if until == "baseline":
            return Wanted(baseline=baseline)
        if until == "search":
            return Wanted(self.search, self.bank, baseline=baseline)
        return Wanted(self.search, self.bank, self.finetuning, self.training, baseline)

    def flags(self) -> dict[str, Any]:
        """{flag: value}: what a run folder keeps of it."""
        bank = self.bank.flags() if self.bank else {"bank": NO_BANK}
        return self.search.flags() | bank | self.finetuning.flags() | self.training.flags()


def check_plan(given: Given, data: Dataset, plan: Plan, device: Device) -> None:
    """Raises UserError for what would stop either phase later, before there is a folder."""
    check(given, data, plan.search, plan.bank)
    check_batch(plan.training, without_held_out(data, plan.search.sampling.held_out), device)


def search_phase(
    folder: RunFolder, given: Given, task: Task, data: Dataset, plan: Plan, device: Device
) -> None:
    """The search of a plan; prints what it found."""
    budget, most = plan.search.budget, plan.search.control.max_drop
    ends = [] if budget.rate is None else [f"to {100 * budget.rate:g} % of the {budget.label}"]
    ends += [] if most is None else [f"until {100 * most:g} % of the metric on D_val are lost"]
    before = ", finished before" if folder.has(PRUNED) else ""
    progress.say(f"search: {' or '.join(ends)}{before}")
    run_search(folder, given, task, data, plan.search, device, plan.bank)
    print_summary(folder.read_json("search.json"))


def finetune_phase(
    folder: RunFolder,
    given: Given,
    task: Task,
    data: Dataset,
    plan: Plan,
    device: Device,
    extras: Extras = NO_EXTRAS,
) -> None:
    """The fine-tuning of a plan after its search in the same folder; ends with result.json."""
    assert plan.training.epochs is not None  # it is resolved
    progress.say(f"fine-tuning: {progress.count(plan.training.epochs, 'epoch')}")
    pruned = run_finetuning(
        folder,
        folder.path,
        given,
        task,
        data,
        plan.training,
        device,
        plan.finetuning,
        extras=extras,
    )
    more = {name: folder.read_json(f"{name}.json") for name in ("search", "finetune")}
    untuned = tested(folder.path)
    report(folder, given, given.read_again(pruned), task, data, device, more, untuned)
