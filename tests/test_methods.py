import subprocess
import sys
from typing import Any

import pytest

from attnguide.batching import batch_key, build_methods
from attnguide.guidance.base import Guidance
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.injection.base import Injection
from attnguide.injection.hand_maps import MapInjection
from attnguide.methods import (
    METHODS,
    build_method,
    check_methods,
    check_options,
    method_class,
    method_info,
    method_options,
)
from attnguide.sampling.best_of_k import BestOfK
from attnguide.types import MethodConfig, Region, Sample

PLACED = (Region("cat", box=(0, 0, 0.5, 1)),)


def _row(*methods: MethodConfig, id: str = "0", regions: tuple[Region, ...] = PLACED, **settings: Any) -> Sample:
    return Sample(id, "a cat", methods=methods, regions=regions, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_builds_from_its_defaults(name: str) -> None:
    info = method_info(name)
    built = build_method(name, {})
    assert isinstance(built, {"guidance": Guidance, "injection": Injection, "baseline": BestOfK}[info.family])
    assert built.name == name
    assert info.summary and not info.summary.endswith(".")
    assert method_class(name).needs_regions == info.needs_regions
    assert info.per_row <= method_options(name).keys()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_its_options(name: str) -> None:
    for option, default in method_options(name).items():
        assert build_method(name, {option: default})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [object(), {"a": object()}, [object()]], ids=["object", "mapping", "list"])
def test_values_of_a_wrong_type_are_refused_by_the_name_of_the_option(name: str, value: object) -> None:
    for option in method_options(name):
        with pytest.raises(ValueError, match=rf"^Method {name!r}: {option} must be .*; got .*object object at"):
            build_method(name, {option: value})


@pytest.mark.parametrize(
    ("number", "stage", "operation", "levels", "scale"),
    [
        (1, "probs", "add", (0,), 3),
        (2, "probs", "replace", (0,), 3),
        (3, "scores", "add", (0,), 30),
        (4, "scores", "replace", (0,), 30),
        (5, "probs", "add", (0, 1), 3),
        (6, "probs", "replace", (0, 1), 3),
        (7, "scores", "add", (0, 1), 30),
        (8, "scores", "replace", (0, 1), 30),
    ],
)
def test_the_eight_functions(number: int, stage: str, operation: str, levels: tuple[int, ...], scale: float) -> None:
    built = build_method(f"inject{number}", {})
    assert isinstance(built, MapInjection)
    assert (built.stage, built.operation, built.sites.levels, built.scale) == (stage, operation, levels, scale)
    assert (built.mass, built.reference, built.branch, built.sites.kind) == ("none", "absolute", "cond", "cross")


def test_user_options_win_over_the_preset() -> None:
    built = build_method("inject5", {"scale": 2, "levels": (1,)})
    assert isinstance(built, MapInjection)
    assert (built.scale, built.sites.levels) == (2, (1,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mask_guidence",
            {},
            r"Unknown method 'mask_guidence' \(did you mean 'mask_guidance'\?\); choose from mask_guidance, ",
        ),
        ("inject5", {"scael": 1}, r"'inject5' has no option 'scael' \(did you mean 'scale'\?\); it has stage, "),
        ("inject5", {"scale": float("nan")}, r"^scale must be finite; got nan"),
        ("attend_and_excite", {"blur_std": float("nan")}, "Method 'attend_and_excite': blur_std must be a number; got nan"),
        ("attend_and_excite", {"step_size": float("nan")}, "step_size: step size must be finite"),
        ("mask_guidance", {"scale": float("inf")}, r"^scale must be finite"),
        ("inject5", {"scale": None}, "Method 'inject5': scale must be a number"),
        ("inject5", {"stage": "nonsense"}, "Method 'inject5': stage must be one of probs, scores; got 'nonsense'"),
        (
            "attend_and_excite",
            {"thresholds": [0.5]},
            "must be a mapping to numbers, like {NAME: VALUE}, or a list; got ",
        ),
        (
            "attend_and_excite",
            {"max_refinements": -1},
            "'attend_and_excite' with max_refinements: iterations must be at least 1",
        ),
        ("mask_guidance", {"iterations": -1}, "^iterations must be at least 0; got -1"),
        ("mask_guidance", {"losses": {"mas": 1}}, "losses must name terms among mass, .* got \\['mas'\\]"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(name, options)


def test_rows_that_cannot_serve_a_method() -> None:
    check_methods(_row(MethodConfig("mask_guidance")))
    check_methods(_row(MethodConfig("attend_and_excite"), regions=(Region("cat"),)))
    check_methods(_row(regions=()))
    with pytest.raises(ValueError, match="'attend_and_excite' needs at least one region; row '0' has none"):
        check_methods(_row(MethodConfig("attend_and_excite"), regions=()))
    with pytest.raises(ValueError, match="'inject1' needs a region with a place; row '0' names phrases only"):
        check_methods(_row(MethodConfig("inject1"), regions=(Region("cat"),)))
    with pytest.raises(ValueError, match="Unknown method 'x'"):
        check_methods(_row(MethodConfig("x")))
    with pytest.raises(ValueError, match="Only one baseline can be named; got best_of_k, best_of_k"):
        check_methods(_row(MethodConfig("best_of_k"), MethodConfig("best_of_k")))


def test_what_may_share_a_batch() -> None:
    base = _row(MethodConfig("inject5", {"scale": 1.0, "mass": "none"}))
    same = [
        _row(MethodConfig("inject5", {"scale": 2.0, "mass": "none"}), id="1", seed=5, cfg_scale=1.0, negative_prompt="x"),
        _row(MethodConfig("inject5", {"mass": "none"}), regions=(Region("a", box=(0, 0, 1, 1)),)),
    ]
    other = [
        _row(),
        _row(MethodConfig("inject6", {"mass": "none"})),
        _row(MethodConfig("inject5", {"mass": "preserve"})),
        _row(MethodConfig("inject5", {"mass": "none"}), steps=31),
        _row(MethodConfig("inject5", {"mass": "none"}), height=64),
        _row(MethodConfig("inject5", {"mass": "none"}), scheduler="euler"),
    ]
    assert all(batch_key(row) == batch_key(base) for row in same)
    assert all(batch_key(row) != batch_key(base) for row in other)
    with pytest.raises(ValueError, match="Rows 0, 9 cannot share a batch"):
        build_methods([base, _row(MethodConfig("mask_guidance"), id="9")])
    with pytest.raises(ValueError, match="Rows 0, 9 cannot share a batch"):
        build_methods([base, _row(id="9", steps=31)])


def test_per_row_options_become_one_value_a_row() -> None:
    rows = [
        _row(MethodConfig("inject5", {"scale": 2.0}), MethodConfig("mask_guidance", {"until": 0.1})),
        _row(MethodConfig("inject5"), MethodConfig("mask_guidance", {"scale": 4.0})),
    ]
    guidances, injections = build_methods(rows)
    assert isinstance(injections[0], MapInjection) and isinstance(guidances[0], MaskGuidance)
    assert list(injections[0].scale) == [2.0, 3.0]  # type: ignore[arg-type]
    assert list(guidances[0].update.scale) == [1.0, 4.0]  # type: ignore[arg-type]
    assert list(guidances[0].update.refinements[0].until) == [0.1, float("-inf")]  # type: ignore[arg-type]


def test_a_row_without_a_value_of_its_own_may_share_a_batch_with_one_that_has_one() -> None:
    thresholds = [{"thresholds": {0.2: 0.5}}, {}, {"thresholds": {"0.4": 0.5}}]  # keys of JSON are text
    guidances, _ = build_methods([_row(MethodConfig("box_diff", options)) for options in thresholds])
    assert [one.at for one in guidances[0].update.refinements] == [(0.0,), (0.2,), (0.4,)]


@pytest.mark.parametrize("value", [[1.0, 2.0], (1.0,)])
def test_a_row_cannot_hold_the_values_of_several(value: object) -> None:
    """A list would be read as one value for each row of whatever batch the row comes to lie in."""
    said = r"Method 'inject1': scale must be one value for a row, each row having its own; got [\[(]1.0"
    config = MethodConfig("inject1", {"scale": value})
    with pytest.raises(ValueError, match=said):
        check_options([config])
    with pytest.raises(ValueError, match=said):
        build_methods([_row(MethodConfig("inject1")), _row(config)])


def test_equal_options_stay_one_value() -> None:
    _, injections = build_methods([_row(MethodConfig("inject5", {"scale": 2.0}))] * 2)
    assert isinstance(injections[0], MapInjection) and injections[0].scale == 2.0


def test_looking_up_and_checking_needs_no_torch() -> None:
    code = (
        "import sys; from attnguide.methods import METHODS, check_methods; from attnguide.types import *; "
        "check_methods(Sample('0', 'a cat', methods=(MethodConfig('inject5'),), regions=(Region('cat', box=(0, 0, 1, 1)),))); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
