"""The choice of settings: what a setting is worth, which are tried, what is written."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import tune_methods
from bench_methods import CONFIGS, read_methods
from tune_methods import KNOBS, Trial

from attnguide.methods import build_method, method_options

PLAIN = Trial({}, 0.2, 0.9)


class FakeBench:
    """Control is best at step size 80 and a stop of 0.8, where the picture suffers."""

    def trial(self, name: str, options: Mapping[str, Any], metric: str) -> Trial:
        assert metric == "region_hit"
        control = 1 - abs(options["step_size"] - 80) / 400
        late = options["stop"] > 0.5
        return Trial(options, control + 0.1 * late, 0.7 if late else 0.9)


def test_worth_by_hand() -> None:
    assert Trial({}, 0.8, 0.89).worth(0.9) == 0.8  # within the allowance
    assert Trial({}, 0.8, 0.78).worth(0.9) == pytest.approx(0.6)
    assert Trial({}, 0.8, 1.0).worth(0.9) == 0.8


def test_one_knob_after_the_other_and_quality_decides() -> None:
    (config,) = read_methods(CONFIGS / "box_diff.yaml")
    trials = tune_methods.tune(FakeBench(), "box_diff", config.options, PLAIN)  # type: ignore[arg-type]
    assert trials[-1].options["step_size"] == 80.0 and trials[-1].options["stop"] == 0.5
    tried = [(trial.options["step_size"], trial.options["stop"]) for trial in trials]
    assert sorted(tried) == [(1.25, 0.5), (5.0, 0.5), (20.0, 0.5), (80.0, 0.3), (80.0, 0.5), (80.0, 0.8), (320.0, 0.5)]


@pytest.mark.parametrize("name", KNOBS)
def test_every_setting_can_be_built(name: str) -> None:
    (config,) = read_methods(CONFIGS / f"{name}.yaml")
    known = {**method_options(name), **config.options}
    for knob in KNOBS[name]:
        for value in knob.settings(known):
            build_method(name, {**config.options, **tune_methods.FIXED.get(name, {}), knob.option: value})


def test_written_configuration(tmp_path: Path) -> None:
    path = tune_methods.write_config("box_diff", {"step_size": 80.0, "stop": 0.5}, tmp_path)
    text = path.read_text()
    assert text.startswith("# attnguide sample --config configs/methods/shapes/box_diff.yaml\n# BoxDiff (https")
    content = yaml.safe_load(text)
    assert content["methods"] == [{"name": "box_diff", "step_size": 80.0, "stop": 0.5}]
    assert content["steps"] == 30 and "scheduler" not in content and content["regions"]
