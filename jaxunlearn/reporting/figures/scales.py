"""Axes for quantities of many magnitudes and both signs: symmetric log scales and their ticks."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

POWERS_FROM = 1e4
"""Numbers of this size are written with powers of ten."""
SMALLEST = -45  # power of ten: float32 has nothing smaller, and symlog axes overflow far below it


def steps_axis(ax: Axes) -> None:
    """Puts ticks at whole steps on the x axis."""
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def linear_axis(axis: Axis) -> None:
    """Gives an axis few ticks, large numbers as m * 10^k, and no offset text."""
    axis.set_major_locator(MaxNLocator(4))
    # One notation for all ticks of an axis: powers of ten where the largest needs one.
    largest = lambda: max(map(abs, axis.get_view_interval()))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: number(value, powers=largest() >= POWERS_FROM))
    )


def linear_width(values: np.ndarray, *, always: bool = False) -> float | None:
    """The half width of a symlog axis' linear part; None where a linear axis shows the values.

    Symlog when the largest magnitude is over 100 times the lower quartile of the non-zero ones.
    The linear part is the power of ten below the smallest tenth, at most five decades down.

    >>> linear_width(np.array([-175_000.0, -20_000.0, 5.0, 70.0]))
    10.0
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes) or not (always or sizes.max() > 100 * np.quantile(sizes, 0.25)):
        return None
    low = math.floor(math.log10(np.quantile(sizes, 0.1)))
    return 10.0 ** max(low, math.ceil(math.log10(sizes.max())) - 5, SMALLEST)


def body_width(values: np.ndarray) -> float | None:
    """A linear part for the bulk of the values: the power of ten above the median magnitude.

    None where no value lies beyond it, so that a linear axis shows them all.

    >>> body_width(np.array([-30.0, 40.0, 70.0, -4_000.0])), body_width(np.array([3.0, -5.0]))
    (100.0, None)
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not len(sizes):
        return None
    width = 10.0 ** max(math.ceil(math.log10(np.median(sizes))), SMALLEST)
    return width if sizes.max() > 2 * width else None


def scale_axis(
    axis: Axis,
    values: np.ndarray,
    width: float | None,
    *,
    tick_count: int = 6,
    linear_decades: float = 0.6,
) -> None:
    """Makes an axis symmetric log, or linear where `width` is None, with ticks that do not collide.

    Args:
      axis: the axis.
      values: what is shown on it.
      width: the half width of the linear part.
      tick_count: about how many ticks there may be.
      linear_decades: the length of either half of the linear part, in decades of the log part.
    """
    if width is None:
        linear_axis(axis)
        return
    scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    scale("symlog", linthresh=width, linscale=linear_decades)
    axis.axes.autoscale_view()
    ticks = symlog_ticks(values, width, tick_count)
    if linear_decades >= 1.0:
        ticks = sorted({*ticks, *(tick / 2 for tick in ticks if abs(tick) == width)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    powers = max(map(abs, ticks)) > 1e2
    axis.set_major_formatter(FuncFormatter(lambda value, _: decade(value, powers=powers)))


def symlog_ticks(values: np.ndarray, width: float, tick_count: int) -> list[float]:
    """Zero and the same powers of ten on both sides, as far as the values reach.

    >>> symlog_ticks(np.array([-3e5, 40.0]), 10.0, 4)
    [-100000.0, -1000.0, -10.0, 0.0, 10.0]
    """
    finite = values[np.isfinite(values)]
    first = round(math.log10(width))
    reaches = {sign: (sign * finite).max(initial=0.0) for sign in (-1.0, 1.0)}
    lasts = {sign: math.floor(math.log10(x)) for sign, x in reaches.items() if x >= width}
    decades = sum(last - first + 1 for last in lasts.values())
    stride = max(1, math.ceil(decades / tick_count))
    # The powers next to zero would touch it where many decades share the axis.
    powers = range(max(lasts.values(), default=first), first - (decades <= 6), -stride)
    ticks = [
        sign * 10.0**power for sign, last in lasts.items() for power in powers if power <= last
    ]
    return sorted([0.0, *ticks])


def number(value: float, *, powers: bool = False) -> str:
    """A short tick label; with a power of ten where the number is long, or where `powers` says so.

    >>> number(-30_000.0), number(-0.25), number(100_000.0), number(5_000.0, powers=True)
    ('$-3\\\\cdot 10^{4}$', '−0.25', '$10^{5}$', '$5\\\\cdot 10^{3}$')
    """
    if value == 0 or (1e-2 <= abs(value) < POWERS_FROM and not powers):
        return f"{value:.4g}".replace("-", "−")
    mantissa, power = f"{value:.2e}".split("e")
    mantissa = f"{float(mantissa):g}"
    factor = {"1": "", "-1": "-"}.get(mantissa, rf"{mantissa}\cdot ")
    return f"${factor}10^{{{int(power)}}}$"


def decade(value: float, *, powers: bool = False) -> str:
    """The tick label of a power of ten (short where it can be), its negative, or zero.

    Args:
      value: the power of ten.
      powers: write it as one whatever its size, as the other ticks of the axis are.

    >>> decade(-1000.0), decade(0.01), decade(0.0), decade(10.0), decade(10.0, powers=True)
    ('$-10^{3}$', '0.01', '0', '10', '$10^{1}$')
    """
    short = 1e-2 <= abs(value) <= 1e2 and not (powers and value)
    if value == 0 or short or math.log10(abs(value)) % 1:
        return number(value, powers=powers)
    sign = "-" if value < 0 else ""
    return f"${sign}10^{{{round(math.log10(abs(value)))}}}$"


def power_of_ten(power: float) -> str:
    """The tick label of 10^power on an axis of log10 values; blank between whole powers.

    >>> power_of_ten(0.0), power_of_ten(12.0), power_of_ten(0.5)
    ('1', '$10^{12}$', '')
    """
    if power != round(power):
        return ""
    return f"$10^{{{round(power)}}}$" if power else "1"
