"""Which flags ask for a memory bank: no run builds one that nothing replays."""

import pytest
from ekg_tf.cli import choices, manners
from ekg_tf.cli import flags as declared
from ekg_tf.options.bank import Bank
from ekg_tf.utils.errors import UserError


def bank(flags: str, *, fine_tuning: bool):
    """(`bank_of` the flags of search.py or of the whole pipeline, the parsed arguments)."""
    parser = manners.Parser()
    declared.add_search(parser)
    if fine_tuning:
        declared.add_finetune(parser)
    args = parser.parse_args(flags.split())
    finetuning = choices.finetuning_of(args) if fine_tuning else None
    return choices.bank_of(args, choices.method_of(args), finetuning), args


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", Bank()),
        ("--finetune_teacher ensemble --bank topk --bank_k 4", Bank("topk", k=4)),
        ("--finetune_teacher none", None),
        ("--finetune_teacher single", None),
        ("--finetune_method plain", None),
        ("--finetune_method plain --method ffp", None),
        ("--finetune_method kd", None),
        ("--finetune_method kd --bank full", Bank("full")),  # for later fine-tunings
        ("--finetune_method kd --bank_features on", Bank(features=True)),
        ("--finetune_method ckt --method ffp", Bank(features=True)),
    ],
)
def test_the_pipeline_builds_the_bank_that_its_fine_tuning_replays(flags, expected):
    found, args = bank(flags, fine_tuning=True)
    assert found == expected
    kept = choices.record(args, expected)
    assert (kept["bank"] == "none") == (expected is None), "args.json says so"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", Bank()),
        ("--method ffp", Bank(features=True)),
        ("--method ffp --bank none", None),
        ("--bank none", None),
    ],
)
def test_search_builds_it_for_fine_tunings_to_come(flags, expected):
    assert bank(flags, fine_tuning=False)[0] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bank none", "the fine-tuning replays the memory bank: leave out --bank none"),
        ("--bank none --finetune_method ckt", "the fine-tuning replays the memory bank"),
        ("--bank none --bank_features on --finetune_method kd", "--bank none keeps no features"),
    ],
)
def test_contradictions(flags, message):
    with pytest.raises(UserError, match=message):
        bank(flags, fine_tuning=True)
