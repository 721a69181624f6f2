"""The charts of a page to be pointed at and zoomed: Vega-Lite, from the package vl-convert-python.

That package bundles Vega, Vega-Lite and Vega-Embed into one script of 0.9 MB (plotly.min.js has
4.8 MB, bokeh.min.js 1.3 MB), draws SVG, which prints sharply and scales, and needs no
eval: expressions are interpreted (`ast`), so that a page may forbid it. Without the package a page
has its static pictures alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import cache
from typing import Any

from ...utils import progress
from . import static
from .charts import Chart, Drawing, Lines, Map

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is read from there
Spec = dict[str, Any]
FEW_TICKS = 10
DASHES = {"solid": [1, 0], "dashed": [5, 3]}
# Without a key the wheel and a finger scroll the page.
ZOOM = {
    "name": "view",
    "select": {
        "type": "interval",
        "translate": "[mousedown, window:mouseup] > window:mousemove!",
        "zoom": "wheel![event.ctrlKey]",
    },
    "bind": "scales",
}
START = """
for (const one of document.querySelectorAll("script[type='application/json']")) {
  const figure = document.getElementById(one.dataset.figure);
  const place = figure.querySelector(".live");
  place.hidden = false;
  vegaEmbed(place, JSON.parse(one.textContent), {
    ast: true, renderer: "svg", tooltip: true,
    actions: {export: true, source: false, compiled: false, editor: false}
  }).then(() => figure.classList.add("drawn")).catch(problem => {
    place.hidden = true;
    console.error(problem);
  });
}
"""


# Its own process, since V8 and TensorFlow in one have been seen to abort.
_BUNDLE = """
import sys, vl_convert
version = [one for one in vl_convert.get_vegalite_versions() if one.startswith("6")][-1]
text = vl_convert.javascript_bundle(sys.stdin.read(), vl_version=version)
sys.stdout.buffer.write(text.encode())
"""
SECONDS = 300  # that the bundling may take on a busy machine; it takes three on an idle one


@cache
def script() -> str | None:
    """The whole script of a page; None without the package, or where that fails."""
    if importlib.util.find_spec("vl_convert") is None:
        return None
    command = [sys.executable, "-c", _BUNDLE]
    try:
        result = subprocess.run(command, input=START.encode(), capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        progress.say(f"report.html gets still pictures: vl-convert-python failed ({error})")
        return None
    if result.returncode or not result.stdout:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        progress.say(f"report.html gets still pictures: vl-convert-python failed ({lines[-1]})")
        return None
    bundle = result.stdout.decode()
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def spec_of(chart: Chart) -> Spec:
    """A chart as a Vega-Lite specification."""
    made = {Lines: _lines, Map: _map, Drawing: _drawing}[type(chart)](chart)
    config = {
        "font": "system-ui, sans-serif",
        "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
        "legend": {"labelFontSize": 12, "labelLimit": 320, "title": None},
        "view": {"stroke": None},
    }
    return {"$schema": SCHEMA, "width": "container", "background": None, "config": config} | made


def as_json(spec: Spec) -> str:
    """A specification that can stand in a page, whatever its texts are."""
    text = json.dumps(spec, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _whole_axis(chart: Lines) -> Spec:
    """An axis of whole numbers; a few have a tick each, since Vega would add halves."""
    ends = [x for one in chart.series for x in one.x]
    axis: Spec = {"format": "d", "tickMinStep": 1}
    if ends and max(ends) - min(ends) <= FEW_TICKS:
        axis["values"] = list(range(int(min(ends)), int(max(ends)) + 1))
    return axis


def _lines(chart: Lines) -> Spec:
    rows = []
    for number, series in enumerate(chart.series):
        for place in range(len(series.x)):
            row = {"x": series.x[place], "y": series.y[place], "s": series.label}
            row |= {"l": "dashed" if series.dashed else "solid", "n": number}
            if series.notes:
                row["t"] = series.notes[place]
            if series.low:
                row |= {"a": series.low[place], "b": series.high[place]}
            rows.append(row)
    legend = {"orient": "bottom", "columns": 1, "symbolType": "stroke"}
    if not chart.has_legend:
        legend = None
    colour = {
        "field": "s",
        "type": "nominal",
        "scale": {
            "domain": [one.label for one in chart.series],
            "range": [static.colour_of(one) for one in chart.series],
        },
        "legend": legend,
    }
    dash = {
        "field": "s",
        "type": "nominal",
        "scale": {
            "domain": [one.label for one in chart.series],
            "range": [DASHES["dashed" if one.dashed else "solid"] for one in chart.series],
        },
        "legend": legend,
    }
    x: Spec = {"field": "x", "type": "quantitative", "title": chart.x_label}
    x["scale"] = {"zero": False, "reverse": chart.falling, "nice": not chart.whole}
    x["axis"] = _whole_axis(chart) if chart.whole else {}
    y: Spec = {"field": "y", "type": "quantitative", "title": chart.y_label}
    y["scale"] = {"type": "log"} if chart.logarithmic else {"zero": False}
    shown = [
        {"field": "s", "title": "line"},
        {"field": "x", "title": chart.x_label, "format": "d" if chart.whole else ".5~g"},
        {"field": "y", "title": chart.y_label, "format": ".5~g"},
    ]
    if any(one.low for one in chart.series):
        shown += [
            {"field": "a", "title": "from", "format": ".5~g"},
            {"field": "b", "title": "to", "format": ".5~g"},
        ]
    if any(one.notes for one in chart.series):
        shown.append({"field": "t", "title": "what"})
    layers: list[Spec] = []
    bars = any(one.low and one.points for one in chart.series)
    if bars or any(one.low for one in chart.series):
        layers.append(
            {
                "mark": {"type": "rule"} if bars else {"type": "area", "opacity": 0.2},
                "transform": [{"filter": "isValid(datum.a)"}],
                "encoding": {
                    "x": x,
                    "y": y | {"field": "a"},
                    "y2": {"field": "b"},
                    "color": colour,
                },
            }
        )
    size = 45 if any(one.points for one in chart.series) or len(rows) < 120 else 18
    layers.append(
        {
            "mark": {"type": "line", "point": {"size": size}, "strokeWidth": 1.8},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "strokeDash": dash,
                "order": {"field": "x", "type": "quantitative"},
                "tooltip": shown,
            },
            "params": [ZOOM],
        }
    )
    if chart.mark:
        place, name = chart.mark
        layers.append(
            {
                "data": {"values": [{"x": place, "t": name}]},
                "mark": {"type": "rule", "strokeDash": [2, 2], "color": static.LINE},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative"},
                    "tooltip": {"field": "t", "title": f"{place:g} %"},
                },
            }
        )
    return {"data": {"values": rows}, "height": 300, "layer": layers}


def _map(chart: Map) -> Spec:
    rows = [
        {"g": chart.rows[row], "x": begin, "x2": end, "s": 100 * share, "t": note}
        for row, begin, end, share, note in chart.cells
    ]
    return {
        "data": {"values": rows},
        "height": max(60, 15 * len(chart.rows)),
        "mark": {"type": "rect", "stroke": "white", "strokeWidth": 0.3},
        "params": [ZOOM | {"select": ZOOM["select"] | {"encodings": ["x"]}}],
        "encoding": {
            "x": {
                "field": "x",
                "type": "quantitative",
                "title": chart.x_label,
                "scale": {"domain": [0, chart.end], "nice": False},
                "axis": {"format": "d", "tickMinStep": 1},
            },
            "x2": {"field": "x2"},
            "y": {
                "field": "g",
                "type": "nominal",
                "title": None,
                "sort": chart.rows,
                "axis": {"labelLimit": 170},
            },
            "color": {
                "field": "s",
                "type": "quantitative",
                "scale": {"scheme": "cividis", "domain": [0, 100]},
                "legend": {"orient": "bottom", "title": "filters kept [%]"},
            },
            "tooltip": {"field": "t", "title": "group"},
        },
    }


def _drawing(chart: Drawing) -> Spec:
    across = {
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [-4, max(chart.width, 400)], "nice": False},
    }
    down = {
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [0, chart.height], "reverse": True, "nice": False},
    }
    edges = [
        {"e": number, "o": order, "x": x, "y": y}
        for number, points in enumerate(chart.edges)
        for order, (x, y) in enumerate(points)
    ]
    boxes = [
        {"x": left, "y": top, "x2": right, "y2": bottom, "k": bottom - share * (bottom - top)}
        | {"t": note, "s": f"{100 * share:.1f} %"}
        for left, top, right, bottom, share, note in chart.boxes
    ]
    shown = [{"field": "t", "title": "layer"}, {"field": "s", "title": "kept"}]
    place = {"x": across | {"field": "x"}, "y": down | {"field": "y"}}
    area = place | {"x2": {"field": "x2"}, "y2": {"field": "y2"}, "tooltip": shown}
    texts = (
        [{"x": x, "y": y, "t": text, "a": "left", "z": 13} for x, y, text in chart.levels],
        [{"x": x, "y": y, "t": text} for x, y, text in chart.labels],
    )
    layers = [
        {
            "data": {"values": edges},
            "mark": {"type": "line", "color": static.LINE, "strokeWidth": 1},
            "encoding": place
            | {
                "detail": {"field": "e", "type": "nominal"},
                "order": {"field": "o", "type": "quantitative"},
            },
        },
        {
            "data": {"values": boxes},
            "mark": {"type": "rect", "color": static.REMOVED, "stroke": static.KEPT}
            | {"strokeWidth": 0.6},
            "encoding": area,
            "params": [ZOOM],
        },
        {
            "data": {"values": boxes},
            "mark": {"type": "rect", "color": static.KEPT},
            "encoding": area | {"y": down | {"field": "k"}},
        },
        {
            "data": {"values": [{"x": x, "y": y, "t": note} for x, y, note in chart.joins]},
            "mark": {"type": "point", "filled": True, "fill": "white", "stroke": static.LINE}
            | {"size": 24},
            "encoding": place | {"tooltip": [{"field": "t", "title": "joins"}]},
        },
    ]
    for values, size, align in ((texts[0], 12, "left"), (texts[1], 9, "center")):
        layers.append(
            {
                "data": {"values": values},
                "mark": {"type": "text", "fontSize": size, "align": align, "baseline": "bottom"}
                | {"color": "#444444"},
                "encoding": place | {"text": {"field": "t"}},
            }
        )
    return {"height": max(120, round(0.9 * chart.height)), "layer": layers}
