"""What a trace looks like in a notebook and as bars: the estimate's own numbers, whatever the names."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import metacurv
from metacurv.estimators.problem import trace_display

matplotlib = pytest.importorskip("matplotlib")
HOSTILE = "<script>alert('a')</script>&$x^{$"


@pytest.fixture(autouse=True)
def _no_window():
    matplotlib.use("Agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def estimate(**changes):
    made = {
        "value": 2.0,
        "stderr": 0.25,
        "n_samples": 40,
        "per_parameter": {"a.weight": 3.5, "a.bias": -0.5, "b.weight": -1.0},
        "per_parameter_stderr": {"a.weight": 0.2, "a.bias": 0.1, "b.weight": 0.3},
        "method": "hutchinson",
        "kind": "hessian",
        "seed": 0,
        "per_layer": {"a": 3.0, "b": -1.0},
        "per_layer_stderr": {"a": 0.125, "b": 0.3},
        "why": "the loss is <not> linear",
    }
    return metacurv.TraceEstimate(**{**made, **changes})


def of_layers(values):
    """An estimate of these layers' traces, each with a standard error of 1."""
    errors = dict.fromkeys(values, 1.0)
    return estimate(value=math.fsum(values.values()), per_layer=values, per_layer_stderr=errors)


class Cells(HTMLParser):
    """The text of every row, cell by cell; every element that was opened, with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.elements = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def bars(ax):
    """Label -> the end of its bar, from the top of the picture down."""
    labels = [label.get_text() for label in ax.get_yticklabels()]
    return dict(zip(labels, [bar.get_width() for bar in ax.patches], strict=True))


def error_bars(ax):
    """Label -> the ends of the line at its bar."""
    (container,) = [c for c in ax.containers if hasattr(c, "has_xerr")]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    (lines,) = container.lines[2]
    return {labels[int(y)]: (left, right) for (left, y), (right, _) in lines.get_segments()}


def test_the_table_has_the_numbers_of_the_estimate():
    found = Cells(estimate()._repr_html_())
    assert found.rows == [
        ["matrix", "Hessian"],
        ["trace", "2"],
        ["standard error", "0.25"],
        ["method", "hutchinson"],
        ["samples", "40"],
        ["why this method", "the loss is <not> linear"],
        ["layer", "trace", "standard error"],
        ["a", "3", "0.12"],
        ["b", "-1", "0.3"],
    ]


def test_a_measured_trace_is_shown_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    found = metacurv.estimate_trace(model, nn.CrossEntropyLoss(), x, y, kind="ggn")
    rows = Cells(found._repr_html_()).rows
    assert ["standard error", "exact"] in rows
    assert ["matrix", "Gauss-Newton matrix"] in rows
    assert rows[-2:] == [[name, f"{found.per_layer[name]:.6g}", "exact"] for name in ("0", "2")]
    axes = found.plot()
    assert bars(axes) == pytest.approx(found.per_layer)
    assert axes.get_title().endswith("exact")
    assert axes.get_xlabel() == "trace"


def test_without_layers_the_parts_are_parameters():
    without = estimate(per_layer={}, per_layer_stderr={})
    assert Cells(without._repr_html_()).rows[-4:-2] == [
        ["parameter", "trace", "standard error"],
        ["a.weight", "3.5", "0.2"],
    ]
    axes = without.plot()
    assert axes.get_ylabel() == "parameter"
    assert bars(axes) == without.per_parameter


def test_a_module_that_owns_its_parameters_itself_has_a_name_too():
    found = of_layers({"": 1.0, "a": 1.0})
    assert "(the model itself)" in found._repr_html_()
    assert "(the model itself)" in bars(found.plot())


def test_names_are_escaped_and_nothing_comes_from_outside():
    found = of_layers({HOSTILE: 1.0, '"onload="x': 2.0})
    cells = Cells(found._repr_html_())
    assert {tag for tag, _ in cells.elements} == {"table", "tr", "th", "td"}
    assert all(attributes.keys() <= {"style"} for _, attributes in cells.elements)
    assert [row[0] for row in cells.rows[-2:]] == [HOSTILE, '"onload="x']
    assert "url(" not in found._repr_html_()
    axes = found.plot()
    axes.figure.canvas.draw()  # a dollar sign would be read as a formula, and this one does not parse


def test_a_long_model_is_cut_to_its_largest_layers_and_still_adds_up():
    sizes = {f"layer{i}": (-1) ** i * float(1 + i * 7 % 50) for i in range(50)}
    found = of_layers(sizes)
    rows = Cells(found._repr_html_()).rows
    shown = rows[rows.index(["layer", "trace", "standard error"]) + 1 :]
    assert len(shown) == trace_display.TABLE_ROWS
    assert shown[-1][0] == "39 other layers"
    assert shown[-1][2] == ""
    assert sum(float(value) for _, value, _ in shown) == pytest.approx(found.value)
    axes = found.plot()
    lengths = bars(axes)
    assert len(lengths) == trace_display.BARS
    assert list(lengths)[-1] == "31 other layers"
    assert sum(lengths.values()) == pytest.approx(found.value)
    drawn = [name for name in lengths if name in sizes]
    assert drawn == [name for name in sizes if name in drawn]  # in the model's order
    left_out = max(abs(sizes[name]) for name in sizes.keys() - set(drawn))
    assert min(abs(sizes[name]) for name in drawn) >= left_out
    assert "31 other layers" not in error_bars(axes)


def test_exactly_as_many_layers_as_fit_are_all_shown():
    found = of_layers({f"layer{i}": 1.0 for i in range(trace_display.BARS)})
    assert "other" not in "".join(bars(found.plot()))


def test_bars_are_the_values_and_their_lines_the_standard_errors():
    axes = estimate().plot()
    assert bars(axes) == {"a": 3.0, "b": -1.0}
    assert error_bars(axes) == {"a": (2.875, 3.125), "b": (-1.3, -0.7)}
    top, bottom = (bar.get_y() for bar in axes.patches)
    assert top < bottom
    assert axes.yaxis_inverted()  # the first layer is at the top
    assert axes.get_title() == "trace of the Hessian: 2 ± 0.25"


def test_it_draws_into_axes_that_are_given():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert estimate().plot(axes) is axes
    assert estimate().plot(ax=axes) is axes


def test_the_error_of_one_sample_is_unknown():
    nan = dict.fromkeys("ab", math.nan)
    found = estimate(n_samples=1, stderr=math.nan, per_layer_stderr=nan)
    assert "nan" not in found._repr_html_()
    assert ["a", "3", "unknown"] in Cells(found._repr_html_()).rows
    axes = found.plot()
    assert "unknown" in axes.get_title()
    axes.figure.canvas.draw()


def test_an_error_that_was_not_reached_is_said():
    assert "was not reached" not in estimate()._repr_html_()
    assert "was not reached" in estimate(converged=False)._repr_html_()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.setitem(sys.modules, name, None)
    message = re.escape('`pip install matplotlib` or `pip install "metacurv[experiment]"`')
    with pytest.raises(ImportError, match=message):
        estimate().plot()
    estimate()._repr_html_()
