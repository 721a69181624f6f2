"""Every case of the table `bad_inputs`, in one process."""

import re

import pytest

from tests.torture.answers import answer, problem
from tests.torture.bad_inputs import CASES
from tests.torture.base import Base
from tests.torture.record import note

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    return Base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def answers(request):
    """Answers so far; what they come to is noted at the end."""
    found = {}
    yield found
    refused = [one for name, one in found.items() if CASES[name].line]
    figures = {
        "listed": len(CASES),
        "cases": len(found),
        "refused": len(refused),
        "fine": len(found) - len(refused),
        "seconds_most": max(one.seconds for one in refused),
        "mebibytes_most": max(one.mebibytes for one in found.values()),
        "wrong": sum(problem(CASES[name], one) is not None for name, one in found.items()),
    }
    note(request.config, "inputs", "table", figures)


@pytest.mark.parametrize("name", CASES)
def test_input_is_answered(name, base, answers, tmp_path):
    folder = tmp_path / re.sub(r"\W", "_", name)
    folder.mkdir()
    answers[name] = answer(CASES[name], base, folder)
    assert problem(CASES[name], answers[name]) is None, answers[name]
