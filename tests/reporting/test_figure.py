"""Pictures: values are where they belong, strange ones do no harm, same data give same bytes."""

import io
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import image

from ramp.reporting.figure import (
    COLORS,
    MAX_POINTS,
    Curve,
    blank,
    picture,
    plot_curves,
    short,
    spread,
    svg,
)


def path(drawn, color):
    """The points of the curve in `color`, in the picture's coordinates (y downwards)."""
    found = re.findall(rf' d="([^"]*)"[^>]*style="fill: none; stroke: var\(--{color}', drawn)
    longest = max(found, key=len)
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", longest), float)


def test_thinning_keeps_the_end_and_the_mean():
    x = np.arange(10_000.0)
    few_x, few_y = Curve("c", x, 2 * x).points()
    assert len(few_x) == MAX_POINTS
    assert (few_x[-1], few_y[-1]) == (9999.0, 19998.0)
    np.testing.assert_allclose(few_y, 2 * few_x)
    np.testing.assert_array_equal(Curve("c", x[:9], x[:9]).points()[1], x[:9])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), st.floats(0.5, 20))
def test_the_moving_average_is_one(y, half_life):
    keep, expected, total, weight = 0.5 ** (1 / half_life), [], 0.0, 0.0
    for value in y:
        total, weight = keep * total + value, keep * weight + 1
        expected.append(total / weight)
    np.testing.assert_allclose(
        Curve("c", range(len(y)), y, half_life=half_life).points()[1], expected, atol=1e-4
    )


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=20))
def test_points_that_cannot_be_drawn_are_left_out(points):
    x, y = np.array(points, float).reshape(-1, 2).T
    sound = [point for point in points if all(abs(v) < 1e30 for v in point)]
    np.testing.assert_array_equal(
        np.stack(Curve("c", x, y).points(), 1), np.reshape(sound, (-1, 2))
    )


def test_values_stand_where_they_belong():
    drawn = svg(
        plot_curves(
            [Curve("c", [0, 5, 10], [4, 4, 1], dots=True)],
            {"xz": (2, "warm")},
            ("step", "bits"),
            log=True,
        )
    )
    first, _, last = path(drawn, "main")[:3]
    assert first[0] < last[0]
    assert first[1] < last[1]  # a smaller value is lower on the page
    rule = path(drawn, "warm")[0, 1]
    assert rule == pytest.approx(
        (first[1] + last[1]) / 2, abs=0.1
    )  # 2 is midway between 1 and 4 on a log axis
    assert 'aria-label="bits by step"' in drawn


numbers = st.floats() | st.sampled_from([0.0, 1e-308, 1e-12, 1e12, 9.9e29, -9.9e29, 5e-324])


@settings(max_examples=40, deadline=None)
@given(st.lists(numbers, max_size=4), st.lists(numbers, max_size=4), numbers, st.booleans())
@example([1.0, 2.0], [-1.0, 9e29], 1e-12, True)
@example([], [], 1e30, True)
def test_strange_values_are_drawn_or_left_out(x, y, level, log):
    n = min(len(x), len(y))
    drawn = svg(
        plot_curves(
            [Curve("c", x[:n], y[:n], half_life=2)], {"l": (level, "grey")}, ("x", "y"), log=log
        )
    )
    places = re.findall(r' (?:d|x|y|viewBox|transform)="([^"]*)"', drawn)
    assert not re.search(r"nan|inf", " ".join(places))
    assert drawn.count("<svg") == drawn.count("</svg>") == 1


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.01, 0.08))
def test_labels_of_close_lines_do_not_overlap(places, gap):
    places = np.sort(np.array(places))
    out = spread(places, gap)
    assert (np.diff(out) >= gap - 1e-9).all()
    assert len(out) == 0 or out.max() <= 1
    if len(out) and (np.diff(places) >= gap).all():
        np.testing.assert_allclose(out, places)  # nothing moves without need


def test_the_same_data_give_the_same_bytes_and_no_date():
    pictures = [
        plot_curves([Curve("c", [1, 2], [3, 4])], {"l": (3, "grey")}, ("x", "y")) for _ in range(2)
    ]
    assert svg(pictures[0]) == svg(pictures[1])
    assert not re.search(r"\d{4}-\d\d-\d\d|https?:| id=\"(figure|axes)", svg(pictures[0]))


def test_a_page_may_recolor_every_stroke_and_letter():
    drawn = svg(
        plot_curves(
            [Curve("c", [1, 2], [3, 4], name) for name in COLORS], {"l": (3, "warm")}, ("x", "y")
        )
    )
    assert all(f"var(--{name}, {color})" in drawn for name, color in COLORS.items())
    assert not re.search(r"(?:fill|stroke): #", drawn)


def test_a_tensorboard_image_reads_on_light_and_on_dark():
    """Nothing is painted behind, and no pixel is nearly black or nearly white, ticks included."""
    figure, axes = blank(3, 2)
    axes.plot([1, 2], [3, 4], color=COLORS["main"])
    for drawn in (
        figure,
        plot_curves([Curve("c", [1, 2], [3, 4])], {"l": (3, "warm")}, ("x", "y")),
    ):
        file = io.BytesIO()
        drawn.savefig(file, format="png")
        file.seek(0)
        pixels = image.imread(file)
        assert (pixels[..., 3] == 0).mean() > 0.5
        lightness = pixels[pixels[..., 3] > 0.9][:, :3].mean(1)
        assert len(lightness) > 50
        assert 0.3 < lightness.min() < lightness.max() < 0.75


def test_short_numbers():
    assert [short(x) for x in (0, 0.0123456, 12.5, 1234.0, 1_234_567, -2.5e9, 3e13)] == [
        "0", "0.01235", "12.5", "1.23k", "1.23M", "-2.5G", "30T",
    ]  # fmt: skip


def test_ticks_tell_each_other_apart_and_steps_are_whole():
    narrow = Curve("loss", range(1, 5), [1.73601, 1.73602, 1.73603, 1.73604])
    axes = plot_curves([narrow], {}, ("step", "")).axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        labels = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
        assert len(set(labels)) == len(labels)
    assert all(float(x).is_integer() for x in axes.xaxis.get_majorticklocs())


@pytest.mark.parametrize(("values", "range_"), [([0, 0], (0, 1)), ([0, 0.25], (0, None))])
def test_what_is_never_negative_has_no_axis_below_0(values, range_):
    low, high = plot_curves([Curve("right", [1, 2], values)], {}, ("step", "")).axes[0].get_ylim()
    assert low == range_[0] and range_[1] in (None, high)


def test_what_is_wide_scrolls_on_a_phone_and_small_differences_look_small():
    curve = [Curve("bits", [0, 1], [1.6660, 1.6668])]
    labels = ("generation", "bits per byte")
    assert picture(curve, {}, labels).startswith('<div class="scroll wide"><svg')
    assert picture(curve, {}, labels, size=(4.6, 2.4)).startswith('<div class="narrow"><svg')
    low, high = plot_curves(curve, {}, labels, span=0.03).axes[0].get_ylim()
    assert high - low == pytest.approx(0.03) and low < 1.666 < 1.6668 < high
    low, high = plot_curves(curve, {}, labels).axes[0].get_ylim()
    assert high - low < 0.001


def test_a_logarithmic_axis_shows_all_of_a_curve_with_a_spike():
    """A range from 0, which is for other axes, would press it flat."""
    values = [8.0, 160.0, 5.0, 3.1]
    axes = plot_curves([Curve("loss", range(1, 5), values)], {}, ("x", "y"), log=True).axes[0]
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log" and 1 < low < 3.1 and 160 < high < 500
