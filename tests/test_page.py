"""report.html: one file, complete, that runs nothing of what a folder holds."""

import base64
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from ekg_tf.reports import page
from ekg_tf.reports.page import charts, drawing, figures, interactive, static
from ekg_tf.reports.page.page import NONE, SECTIONS
from ekg_tf.reports.page.runs import named, read_run
from ekg_tf.utils.errors import UserError

from ekg_tf.commands import report
from tests.helpers import run_folders as made

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("vl_convert") is None,
    reason="needs pip install -r requirements-report.txt",
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on one that isn't well-formed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return "\n".join(text for tag, text in self.texts if tag not in ("script", "style"))


def checked(text: str) -> Page:
    """What every page must be, whatever the folder holds."""
    found = Page(text)
    assert [one["id"] for one in found.all("section")] == list(SECTIONS)
    policies = [one["content"] for one in found.all("meta") if one.get("http-equiv")]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'; script-src '")
    assert "unsafe-eval" not in policies[0] and "http" not in policies[0]
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes), attributes
        assert attributes.get("src", "data:").startswith("data:"), attributes
        assert attributes.get("href", "#").startswith("#"), attributes
    kinds = [one.get("type") for one in found.all("script")]
    assert set(kinds) <= {"application/json", "module"} and kinds.count("module") <= 1
    assert not {"iframe", "object", "embed", "base", "form", "link"} & {
        name for name, _ in found.elements
    }
    return found


def missing(found: Page) -> int:
    return found.words.count(NONE)


def test_a_finished_run_fills_every_section(tmp_path):
    found = checked(page.text_of([made.finished(tmp_path / "run")]))
    assert missing(found) == 0
    words = found.words
    assert "61.0 % of the FLOPs (1,000 → 610) and 60.0 % of the parameters (500 → 300)" in words
    assert "90.00 ± 1.50 % → 89.00 ± 1.56 %, no difference that so many examples" in words
    assert "Latency (batch 1, TensorFlow): 2.000 → 1.500 ms" in words
    assert "ekg-tf prune --model /home/me/run.keras" in words
    assert "By batch statistics" in words and "top-5" not in words  # of ten classes
    charts_shown = [one["id"] for one in found.all("figure")]
    assert charts_shown == [
        *("chart-network-0", "chart-search-loss", "chart-search-accuracy", "chart-removed-0"),
        *("chart-finetune-0", "chart-finetune-1", "chart-baseline-0", "chart-baseline-1"),
        *("chart-front-0", "chart-front-1"),
    ]


def test_what_a_folder_holds_stays_text(tmp_path):
    folder = made.finished(tmp_path / "<b>run", args={"note": made.EVIL, made.EVIL: 1})
    text = page.text_of([folder])
    found = checked(text)
    shown = made.EVIL.replace("\x07", "\ufffd")
    assert found.words.count(shown) >= 3  # a layer, a setting and its name
    assert found.all("h1") and "<b>run" in found.words
    assert "alert" not in "".join(one for tag, one in found.texts if tag == "script")
    assert not any("onerror" in attributes for _, attributes in found.elements)


STATES = {
    "search begun": ({"history": made.history()[:3]}, "its search stands at step 2, 74.0 %"),
    "searched": (
        {"history": made.history(), "search": made.search(made.tested(80.0))},
        "are left, before any fine-tuning",
    ),
    "fine-tuning begun": (
        {
            "history": made.history(),
            "search": made.search(made.tested(80.0)),
            "metrics": made.epochs(count=2),
        },
        "isn't finished: 2 of 3 epochs of fine-tuning. So far: 61.0 %",
    ),
    "only fine-tuned": (
        {"metrics": made.epochs(), "result": made.result(made.tested(70.0))},
        "worse beyond the noise",
    ),
    "baseline begun": (
        {"metrics": made.epochs("baseline", 1)},
        "This run isn't finished: 1 epochs of its baseline",
    ),
    "metric of one's own": (
        {
            "history": [row | {"val_accuracy": None} for row in made.history()],
            "search": made.search(made.tested(None, iou=0.7)),
            "metrics": made.epochs(test_metrics={"iou": 0.7}),
            "result": made.result(made.tested(None, iou=0.7), made.tested(None, iou=0.8)),
        },
        "Test iou on 400 examples: 0.8000 → 0.7000.",
    ),
    "a score of one's own": (
        {
            "history": made.history("score"),
            "result": {
                "before": {"flops": 9, "parameters": 9, "score": 0.5},
                "after": {"flops": 5, "parameters": 5, "score": 0.4},
                "network": made.network(),
            },
        },
        "score: 0.5000 → 0.4000.",
    ),
    "in one step": (
        {"history": made.history()[::3], "search": made.search(made.tested(80.0))},
        "before any fine-tuning",
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_every_kind_of_folder(tmp_path, state):
    files, words = STATES[state]
    found = checked(page.text_of([made.write(tmp_path / "run", **files)]))
    assert words in found.words


def test_an_outline_is_missing_in_older_folders(tmp_path):
    searched = {key: one for key, one in made.search(made.tested()).items() if key != "network"}
    found = checked(page.text_of([made.write(tmp_path, history=made.history(), search=searched)]))
    assert missing(found) == 2  # no drawing, no fine-tuning


def test_several_folders_side_by_side(tmp_path):
    seeds = [made.finished(tmp_path / f"s{n}", args={"seed": n}, shift=n) for n in range(2)]
    other = made.finished(tmp_path / "other", args={"search_target_rate": 0.3, "method": "ffp"})
    found = checked(page.text_of([*seeds, other]))
    assert "3 runs side by side" in found.words
    for name in ("s0", "s1", "other"):
        assert name in found.words
    assert "What differs" in found.words and "search_target_rate" in found.words
    assert "Bands are one standard deviation over the seeds." in found.words
    assert [one["id"] for one in found.all("figure")].count("chart-network-2") == 1


def test_a_band_is_a_standard_deviation_over_seeds(tmp_path):
    folders = [made.finished(tmp_path / f"s{n}", args={"seed": n}, shift=n) for n in (0, 2)]
    (_, accuracy) = charts.training_lines([*map(read_run, folders)], "finetune", "Fine-tuning")
    test = next(one for one in accuracy.series if not one.dashed)
    assert test.x == [1, 2, 3] and test.y == [87, 88, 89]
    deviation = 2**0.5
    assert test.low == pytest.approx([one - deviation for one in test.y])
    assert test.high == pytest.approx([one + deviation for one in test.y])


def test_what_was_removed_when():
    run = _run(history=made.history())
    shown = charts.removal_map(run, "key")
    assert [(row, begin, end, share) for row, begin, end, share, _ in shown.cells] == [
        *((0, 0, 1, 1.0), (0, 1, 3, 0.75), (0, 3, 4, 0.5)),
        *((1, 0, 2, 1.0), (1, 2, 4, 0.75)),
    ]
    assert charts.removal_map(_run(history=made.history()[:2]), "key") is None


def _run(**parts):
    from ekg_tf.reports.page.runs import Run

    return Run("run", "run", {}, {}, **parts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", '{"before": 3, "after": 4}'),
        ("result.json", "[]"),
        ("search.json", '{"gates": 3}'),
        ("history.jsonl", '{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n'),
        ("history.jsonl", "{\n{}\n"),
        ("args.json", "7"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, name, content):
    folder = made.finished(tmp_path / "run")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=str(folder)):
        page.text_of([folder])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        page.text_of([tmp_path])
    with pytest.raises(UserError, match="nothing to report"):
        page.text_of([made.write(tmp_path / "begun")])


def test_reading_leaves_a_torn_line_to_its_writer(tmp_path):
    folder = made.write(tmp_path / "run", history=made.history())
    path = folder / "history.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 4, "wid')
    before = path.read_bytes()
    assert len(read_run(folder).history) == 4
    assert path.read_bytes() == before


def test_names_tell_folders_apart(tmp_path):
    assert named([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert named([tmp_path / "x/a", tmp_path / "y/a"]) == ["x/a", "y/a"]


# ---------------------------------------------------------------- the drawing


def node(name, size, sources, joins=False, channels=(8, 4)):
    keys = {"name": name, "kind": "Conv2D", "joins": joins, "size": size}
    return keys | {"channels": list(channels), "from": sources}


U_NET = [
    node("down", [32, 32], []),
    node("middle", [16, 16], [0]),
    node("squeezed", [1, 1], [1]),
    node("up", [32, 32], [2]),
    node("joined", [32, 32], [0, 3], joins=True),
    node("end", [32, 32], [4]),
]


def test_a_u_net_goes_down_and_up_again():
    assert drawing.levels_of(U_NET) == [0, 1, 1, 0, 0, 0]
    picture = drawing.drawn(U_NET, "key", "title")
    assert [text for *_, text in picture.levels] == ["32 × 32", "16 × 16"]  # noqa: RUF001
    tops = [(top + bottom) / 2 for _, top, _, bottom, _, _ in picture.boxes]
    assert tops[0] == tops[3] < tops[1] == tops[2]
    assert {share for *_, share, _ in picture.boxes} == {0.5}
    (over,) = [points for points in picture.edges if len(points) == 4]
    assert min(y for _, y in over) < min(top for _, top, *_ in picture.boxes)


def test_a_block_ends_where_one_tensor_leads_on():
    residual = [
        node("stem", [8, 8], []),
        node("a", [8, 8], [0]),
        node("add", [8, 8], [0, 1], joins=True),
        node("b", [8, 8], [2]),
        node("add2", [8, 8], [2, 3], joins=True),
        node("coarser", [4, 4], [4]),
    ]
    assert drawing.blocks_of(residual) == [0, 0, 0, 1, 1, 2]
    assert drawing.blocks_of(U_NET) == [0, 1, 1, 1, 1, 2]


# ---------------------------------------------------------------- pictures


def everything(tmp_path):
    """One chart of each kind, with names that mean harm."""
    run = read_run(made.finished(tmp_path / "run", args={"seed": 0}))
    other = read_run(made.finished(tmp_path / "other", args={"seed": 1}, shift=1))
    lines = charts.training_lines([run, other], "finetune", "Fine-tuning")
    front = charts.front_lines([run, other])
    drawn = drawing.drawn(run.network, "network", made.EVIL)
    return [*charts.search_lines([run]), charts.removal_map(run, "map"), drawn, *lines, *front]


def test_pictures_without_a_script(tmp_path, real_pictures):
    for chart in everything(tmp_path)[:4]:
        kind, data = static.picture(chart).split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        assert "<script" not in svg and len(svg) > 2000


RENDER = """
import json, sys, vl_convert
print(json.dumps([vl_convert.vegalite_to_svg(one) for one in json.load(sys.stdin)]))
"""


@needs_extra
def test_specifications_are_ones_that_vega_lite_draws(tmp_path):
    specs = [interactive.spec_of(chart) | {"width": 600} for chart in everything(tmp_path)]
    command, text = [sys.executable, "-c", RENDER], json.dumps(specs)
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    for svg in json.loads(result.stdout):
        assert svg.count("<path") > 3 and "NaN" not in svg


def test_a_specification_can_stand_in_a_page(tmp_path):
    for chart in everything(tmp_path):
        text = interactive.as_json(interactive.spec_of(chart))
        assert not set("<>&") & set(text)
        assert '"expr"' not in text and "signal" not in text  # nothing of a folder is computed with


@needs_extra
def test_the_page_allows_its_own_script_alone(tmp_path, real_pictures):
    text = page.text_of([made.finished(tmp_path / "run")])
    found = checked(text)
    script = [one for tag, one in found.texts if tag == "script"][-1]
    assert "vegaEmbed" in interactive.START and "eval(" not in interactive.START
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(one["content"] for one in found.all("meta") if one.get("http-equiv"))
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(text) < 2_000_000


def test_without_the_extra_the_page_forbids_all_scripts(tmp_path):
    found = checked(page.text_of([made.finished(tmp_path / "run")]))
    assert not found.all("script")
    policy = next(one["content"] for one in found.all("meta") if one.get("http-equiv"))
    assert "script-src 'none'" in policy


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.mark.slow
@needs_extra
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium isn't installed")
def test_chromium_draws_every_chart_and_has_no_complaint(tmp_path, real_pictures):
    runs = [made.finished(tmp_path / f"s{n}", args={"seed": n}, shift=n) for n in range(2)]
    out = tmp_path / "page.html"
    out.write_text(page.text_of(runs), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --dump-dom".split()
    command = [CHROMIUM, *flags, "--virtual-time-budget=20000", out.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in result.stderr, result.stderr
    figures_shown = re.findall(r"<figure[^>]*>", result.stdout)
    assert len(figures_shown) > 8
    assert all("drawn" in one for one in figures_shown), figures_shown


# ---------------------------------------------------------------- the command


def test_the_command_writes_into_the_folder_and_again(tmp_path, capsys):
    folder = made.write(tmp_path / "run", history=made.history())
    for _ in range(2):
        report.main([str(folder)])
        assert capsys.readouterr().out == f"the report is {folder / 'report.html'}\n"
    assert "report.html" in json.loads((folder / "files.json").read_text())["files"]
    checked((folder / "report.html").read_text())


def test_the_command_compares_folders_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [str(made.write(tmp_path / name, history=made.history())) for name in "ab"]
    report.main(folders)
    assert "2 runs side by side" in checked((tmp_path / "report.html").read_text()).words
    report.main([*folders, "--out", "compared.html"])
    assert (tmp_path / "compared.html").exists()
    assert not (tmp_path / "a" / "report.html").exists()


def test_the_command_replaces_nothing_but_reports(tmp_path):
    folder = made.write(tmp_path / "run", history=made.history())
    own = tmp_path / "own.html"
    own.write_text("mine")
    with pytest.raises(UserError, match=r"own\.html is there and is no report"):
        report.main([str(folder), "--out", str(own)])
    with pytest.raises(UserError, match="is no folder: make it first"):
        report.main([str(folder), "--out", str(tmp_path / "no" / "page.html")])
    (folder / "report.html").write_text("mine")
    with pytest.raises(UserError, match="was not written by this run"):
        report.main([str(folder)])
    assert own.read_text() == (folder / "report.html").read_text() == "mine"


def test_latency_where_it_runs_comes_first():
    measured = {
        "deployed": {
            "runtime": "LiteRT, one CPU thread",
            "batch": 1,
            "latency_ms": {"before": 3.0, "after": 1.5},
            "ratio": [0.4, 0.6],
        },
        "latency_ratio": {"1": [0.9, 1.1]},
    }
    run = _run(result=made.result(made.tested()) | measured)
    first, second = figures.latencies_of(run)
    assert first.sentence().endswith("3.000 → 1.500 ms per example: faster (ratio 0.40 to 0.60).")
    assert "no measurable change" in second.sentence()
