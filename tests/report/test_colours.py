"""Runs can be told apart by anyone, on either background: contrast, colour vision, grey print."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from megatron_slw.report.inputs import MAX_RUNS
from megatron_slw.report.page_assets import COLOURS_DARK, COLOURS_LIGHT, DASHES, SIGNS

# Of linear RGB: how the two common kinds of colour blindness see it (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
SCHEMES = [(COLOURS_LIGHT, "#ffffff"), (COLOURS_DARK, "#15171a")]


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* under D65."""
    t = XYZ @ np.clip(rgb, 0, 1) / (XYZ @ np.ones(3))
    x, y, z = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("colours", "page"), SCHEMES, ids=["light", "dark"])
def test_every_colour_can_be_read_as_text(colours: tuple[str, ...], page: str) -> None:
    for colour in colours:
        dark, light = sorted((XYZ @ linear(c))[1] for c in (colour, page))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{colour} on {page}"


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("colours", "page"), SCHEMES, ids=["light", "dark"])
def test_no_two_colours_look_alike(colours: tuple[str, ...], page: str, vision: str) -> None:
    for first, second in combinations(colours, 2):
        a, b = (lab(np.array(VISION[vision]) @ linear(colour)) for colour in (first, second))
        assert np.linalg.norm(a - b) > 30, f"{first} and {second}"


def test_five_runs_differ_without_any_colour() -> None:
    assert len(set(COLOURS_LIGHT)) == len(set(COLOURS_DARK)) == len(set(DASHES)) == len(set(SIGNS)) == MAX_RUNS
