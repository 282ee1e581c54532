"""The colours of figures and page: sets, layer groups and objectives have palettes of their own."""

RISKS = {"unlearn": "#B2182B", "retain": "#2166AC"}
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
    *("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7B4F2B", "#6A51A3", "#8C8C8C", "#F0027F"),
    *("#1B9E9E", "#A6761D"),
)
"""Objectives by their place in the configuration: Okabe and Ito's colours that are not near those
of the sets, and others; beyond ten they repeat."""

CHOSEN = "#00A3E0"
"""The outline of a point that is chosen."""

WEIGHT_BINS = ("#C9A227", "#E07B39", "#D1495B", "#A23E8C", "#6C4AB6", "#8C959F", "#8C959F")
"""Samples by weight, the highest darkest, each to be seen on white and on black; then weights that
are all alike, and none."""

OTHER = "#8C959F"
"""Models that are no objective's."""


def objective(place: int) -> str:
    """The colour of the objective at a place of the configuration."""
    return OBJECTIVES[place % len(OBJECTIVES)]
