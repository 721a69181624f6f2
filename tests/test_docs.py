"""The documentation: its examples run, its pages have a place, its tables know every flag."""

import ast
import doctest
import importlib
import inspect
import io
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from ekg_tf.options import recipes
from ekg_tf.pages import command_line

import ekg_tf as ekg
from tests.helpers import docs_stage

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
QUICK = ["README.md", "CONTRIBUTING.md"]
# docs/api.md's examples are in the docstrings.
LONG = sorted(
    str(page.relative_to(ROOT))
    for page in DOCS.glob("*.md")
    if not page.name.endswith(".in.md") and page.name != "api.md" and docs_stage.blocks(page)
)
FUNCTIONS = (
    "inspect sensitivity prune run_search run_finetuning search_with export register".split()
)


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = recipes.RECIPES[recipes.OWN]
    short = replace(own, training=replace(own.training, epochs=1))
    monkeypatch.setitem(recipes.RECIPES, recipes.OWN, short)
    return docs_stage.stage(tmp_path)


def run_page(page: str, names: dict) -> None:
    found = docs_stage.blocks(ROOT / page)
    assert found
    for number, block in enumerate(found):
        docs_stage.run(block, names, f"{page}, block {number + 1}")


@pytest.mark.parametrize("page", QUICK)
def test_examples_of_a_page_run(page, names):
    run_page(page, names)


@pytest.mark.slow
@pytest.mark.parametrize("page", LONG)
def test_examples_of_a_long_page_run(page, names, tmp_path):
    (tmp_path / "wider").mkdir()
    run_page(page, names | docs_stage.stage(tmp_path / "wider", filters=8))


@pytest.mark.parametrize("page", [*QUICK, *LONG])
def test_examples_of_a_page_call_what_there_is(page):
    """Names and arguments of ekg_tf in all pages, also in those that are too long to run here."""
    for block in docs_stage.blocks(ROOT / page):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("ekg."):
                continue
            _, _, name = ast.unparse(node.func).partition(".")
            assert name in ekg.__all__, (page, name)
            given = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(getattr(ekg, name)).bind(*node.args, **given)


class Checker(doctest.OutputChecker):
    """Compares only where a docstring says what comes out: runs print their progress."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got.splitlines(keepends=True)[-1], 0)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_examples_of_docstrings_run(names):
    parser, said = doctest.DocTestParser(), io.StringIO()
    runner = doctest.DocTestRunner(checker=Checker(), verbose=False)
    for name in FUNCTIONS:
        text = getattr(ekg, name).__doc__
        test = parser.get_doctest(text, names, name, None, None)
        assert test.examples, name
        test.globs = names  # shared: what one makes the next one takes
        runner.run(test, out=said.write, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, said.getvalue()


# ---------------------------------------------------------------- the page of flags


def test_every_command_and_flag_is_listed():
    tables = command_line.page()
    for command, parser in command_line.parsers().items():
        assert f"`{command}`" in tables
        for action in parser._actions:
            for word in action.option_strings:
                assert word in ("-h", "--help") or f"| `{word}` |" in tables, (command, word)


def test_every_flag_says_what_it_does():
    for words, flag in command_line.flags(command_line.parsers()).items():
        assert all(len(text) > 2 for text in list(flag.meanings)[:1]), words


def test_a_flag_shows_its_default_its_values_and_its_python_name():
    tables = command_line.page()
    line = next(line for line in tables.splitlines() if line.startswith("| `--search_step`"))
    assert line == (
        "| `--search_step` | 0.2 | share of a gate's original width that it offers at a time | "
        "`EKG(step)`, `FFP(step)` |"
    )
    line = next(line for line in tables.splitlines() if line.startswith("| `--arch`"))
    assert "ResNet-20; ResNet-50 (`train_imagenet.py`)" in line
    line = next(line for line in tables.splitlines() if line.startswith("| `--schedule`"))
    assert "one of `step`, `cosine`" in line and "`Training(schedule)`" in line


def test_settings_of_a_class_are_listed():
    table = command_line.settings_table("options.budgets.Latency")
    assert "| `batch` | 1 | images per pass that the latency is measured at |" in table
    names = re.findall(r"<!-- settings: ([\w.]+) -->", (DOCS / "api.md").read_text())
    for place in names:
        module, _, name = place.rpartition(".")
        assert getattr(importlib.import_module(f"ekg_tf.{module}"), name) is getattr(ekg, name)


def test_everything_public_is_on_the_page():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: ekg_tf\.[\w.]+\.(\w+)$", page, re.MULTILINE))
    assert listed == set(ekg.__all__) - {"__version__"}


def test_printing_the_page_is_a_command():
    with redirect_stdout(io.StringIO()) as said:
        command_line.main([])
    assert said.getvalue().strip() == command_line.page()


# ---------------------------------------------------------------- the site


def test_every_page_has_a_place():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    pages = {path.name for path in DOCS.glob("*.md") if not path.name.endswith(".in.md")}
    for page in pages:
        assert re.search(rf"^ +- .*: {re.escape(page)}$", navigation, re.MULTILINE), page


def test_links_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "examples" / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^()\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("#"):
                assert (page.parent / target.split("#")[0]).exists(), (page.name, target)
