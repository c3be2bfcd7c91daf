import pytest

from attnguide.sampling.check import check_rows
from attnguide.types import MethodConfig, Region
from tests import tiny

GUIDED = (MethodConfig("mask_guidance"),)
SMALL = Region("red cat", box=(0.40, 0.40, 0.42, 0.42))


def test_good_rows_pass() -> None:
    methods = tuple(MethodConfig(name) for name in ("mask_guidance", "attend_and_excite", "inject1", "inject7"))
    check_rows(tiny.model(), [tiny.row(), tiny.row("1", methods=methods, scheduler="heun", height=40, width=24)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a cat " * 10 + "and a red dog", "regions": ()}, r"Row '0': prompt .*longer than.* lost words: 'red dog'"),
        ({"regions": (Region("cow"),)}, "Row '0': Phrase 'cow' does not occur"),
        ({"scheduler": "eular"}, "Row '0': Unknown scheduler 'eular'"),
        ({"methods": (MethodConfig("mask_gidance"),)}, "Row '0': Unknown method 'mask_gidance'"),
        ({"methods": (MethodConfig("inject1", {"levels": (5,)}),)}, "Row '0': No attention site matches"),
        ({"methods": (MethodConfig("mask_guidance", {"levels": (7,)}),)}, "Row '0': No attention site matches"),
        (
            {"methods": (MethodConfig("mask_guidance", {"losses": {"inside": 1.0}}),), "regions": (SMALL,)},
            "Row '0': Region 'red cat' covers no cell of the 16x16 map",
        ),
    ],
)
def test_refusals(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        check_rows(tiny.model(), [tiny.row(**settings)])


def test_a_soft_term_takes_a_small_region() -> None:
    check_rows(tiny.model(), [tiny.row(regions=(SMALL,), methods=GUIDED)])


def test_the_row_is_named() -> None:
    with pytest.raises(ValueError, match="Row 'second'"):
        check_rows(tiny.model(), [tiny.row("first"), tiny.row("second", scheduler="x")])
