"""The colours of figures and page: sets, layer groups and objectives have palettes of their own.

Those of the page stand out by 3 to 1 on its light paper and on its dark one, which is what people
with weak sight need of lines and marks (WCAG 2.1, 1.4.11); so they are neither bright nor dark.
"""

RISKS = {"unlearn": "#C2243A", "retain": "#2166AC"}
"""D_u is red and D_r blue, wherever they stand side by side."""

GROUPS = {
    "embed": "#440154",
    "shallow": "#3B528B",
    "middle": "#21918C",
    "deep": "#5EC962",
    "lm": "#B5A400",
}
"""Layer groups, dark at the input and bright at the output (from viridis)."""

OBJECTIVES = (
    *("#D17A00", "#009E73", "#CC79A7", "#3A9BDC", "#8C5A33", "#7559B3", "#7F8C00", "#F0027F"),
    *("#1B9E9E", "#A6761D"),
)
"""Objectives by their place in the configuration: the hues of Okabe and Ito that are not near those
of the sets, and others; beyond ten they repeat."""

CHOSEN = "#009BD6"
"""The outline of a point that is chosen."""

WEIGHT_BINS = ("#B28C1A", "#DA7230", "#D1495B", "#A23E8C", "#7050BB", "#8C959F", "#8C959F")
"""Samples by weight, the highest darkest, each to be seen on white and on black; then weights that
are all alike, and none."""

OTHER = "#8C959F"
"""Models that are no objective's."""


def objective(place: int) -> str:
    """The colour of the objective at a place of the configuration."""
    return OBJECTIVES[place % len(OBJECTIVES)]
