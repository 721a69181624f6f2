"""Bad inputs of every kind, one of each; tests/torture has them all."""

import re

import pytest

from tests.torture.answers import answer, problem
from tests.torture.bad_inputs import CASES
from tests.torture.base import Base


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    return Base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.quick])
def test_input_is_answered(name, base, tmp_path):
    folder = tmp_path / re.sub(r"\W", "_", name)
    folder.mkdir()
    found = answer(CASES[name], base, folder)
    assert problem(CASES[name], found) is None, found
