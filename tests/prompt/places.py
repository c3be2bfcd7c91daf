"""Boxes of any place and size, as strategies of hypothesis, and their corners."""

from hypothesis import assume
from hypothesis import strategies as st

FRACTIONS = st.floats(0, 1, allow_subnormal=False)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x0, x1 = sorted((draw(FRACTIONS), draw(FRACTIONS)))
    y0, y1 = sorted((draw(FRACTIONS), draw(FRACTIONS)))
    assume(x0 < x1 and y0 < y1)
    return x0, y0, x1, y1


def corners(box: tuple[float, float, float, float]) -> tuple[tuple[float, float], ...]:
    x0, y0, x1, y1 = box
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
