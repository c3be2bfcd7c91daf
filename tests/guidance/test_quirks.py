import pytest

from attnguide.guidance.quirks import repeats_slips
from attnguide.methods import METHODS, build_method, method_options


def test_two_words() -> None:
    assert repeats_slips("reference") and not repeats_slips("none")


@pytest.mark.parametrize("name", [name for name in METHODS if "quirks" in method_options(name)])
def test_every_method_refuses_another_word(name: str) -> None:
    with pytest.raises(ValueError, match="quirks must be one of none, reference; got 'paper'"):
        build_method(name, {"quirks": "paper"})
