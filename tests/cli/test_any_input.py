"""Whatever is typed or stands in a file: a plan, or one line and status 2; never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnguide.cli import main
from attnguide.rows.values import ROW_KEYS
from attnguide.text.yaml12 import dump_yaml

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_NUMBERS = st.integers(-9, 9) | st.floats() | st.integers(-(10**50), 10**50)
_ODD = st.sampled_from(
    ["1:30", "yes", "017", "0o17", "1e5", "1_0", "٣", "nan", "-0", "0..3", "3..1", "[", "{a: ", "~", "", " "]
)
_SCALAR = st.none() | st.booleans() | _NUMBERS | _TEXT | _ODD
_PLAIN = st.recursive(
    _SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=5
)
_REGION = st.fixed_dictionaries(
    {"phrase": st.sampled_from(["cat", "dog", "cow"]) | _SCALAR},
    optional={key: _PLAIN | st.lists(_NUMBERS, min_size=4, max_size=4) for key in ("box", "blob", "polygon", "source")}
    | {"mask": _TEXT, "occurrence": _SCALAR, "token_indices": _PLAIN, "weight": _SCALAR},
)
_SOUND = {
    "id": "a",
    "prompt": "a cat and a dog",
    "regions": [{"phrase": "cat", "box": [0, 0, 0.5, 1]}],
    "steps": 2,
    "methods": ["inject1"],
    "tags": {"k": 1},
}
_ROW = st.builds(
    lambda odd: _SOUND | odd,
    st.dictionaries(st.sampled_from([key for key in ROW_KEYS if key != "regions"]) | _TEXT, _PLAIN, max_size=1)
    | st.fixed_dictionaries({"regions": st.lists(_REGION | _TEXT, max_size=2) | _PLAIN}),
)
_OPTIONS = [
    *("--seed", "--steps", "--cfg-scale", "--height", "--batch-size", "--region", "--group", "--method", "--method.scale"),
    *("--box-size", "--negative-prompt", "--wandb.tags", "--wandb.name", "--trainer.devices", "--logger", "--scheduler"),
]
_AXES = ["cfg_scale", "steps", "method", "method.scale", "inject1.scale", "regions", "seed", "prompt", "method.name"]


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command up to its plan; say how it ended after checking that it ended well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("attnguide.cli.execute.execute", lambda *given: 0)

    def run(*words: str) -> int:
        capsys.readouterr()
        status = main(list(words))
        errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        assert (status, len(errors)) in ((0, 0), (2, 1)), (words, errors)
        assert not any("internal error" in line for line in errors), (words, errors)
        return status

    return run


@QUICK
@given(rows=st.lists(_ROW, min_size=1, max_size=3), kind=st.sampled_from(["yaml", "json", "jsonl"]))
def test_tables(ended: Any, rows: list[dict[str, Any]], kind: str) -> None:
    text = dump_yaml(rows) if kind == "yaml" else json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    Path(f"rows.{kind}").write_text(text, encoding="utf-8")
    ended("sample", "--rows", f"rows.{kind}")


@QUICK
@given(cells=st.lists(st.lists(_TEXT | _ODD, min_size=5, max_size=5), max_size=3), text=_TEXT)
def test_tables_of_text(ended: Any, cells: list[list[str]], text: str) -> None:
    lines = ["prompt,seed,regions,obj1,bbox1", *(",".join(row) for row in cells), 'a cat,1,,cat,"0,0,1,1"', text]
    Path("rows.csv").write_text("\n".join(lines), encoding="utf-8")
    ended("sample", "--rows", "rows.csv")


@QUICK
@given(
    option=st.sampled_from(_OPTIONS),
    value=_TEXT | _ODD | _NUMBERS.map(str),
)
def test_options(ended: Any, option: str, value: str) -> None:
    ended("sample", "a cat and a dog", f"{option}={value}", "--print_config")
    ended("sample", "a cat and a dog", option, value)


@QUICK
@given(
    values=st.dictionaries(
        st.sampled_from(["prompt", "seed", "steps", "regions", "methods", "cfg_scale", "rows", "trainer", "wandb", "logger"]),
        _PLAIN,
        max_size=3,
    )
)
def test_configurations(ended: Any, values: dict[str, Any]) -> None:
    Path("config.yaml").write_text(dump_yaml(values), encoding="utf-8")
    ended("sample", "--config", "config.yaml")


@QUICK
@given(text=st.text("[]{}&*!<>:-?#|\n '\"ab1,", max_size=30))
def test_files_of_any_text(ended: Any, text: str) -> None:
    Path("any.yaml").write_text(text, encoding="utf-8")
    ended("sample", "--config", "any.yaml")
    ended("sample", "--rows", "any.yaml")
    ended("ablate", "any.yaml", "--dry-run")


@QUICK
@given(
    name=st.sampled_from(_AXES),
    values=_PLAIN,
)
def test_ablations(ended: Any, name: str, values: Any) -> None:
    base = {"prompt": "a cat", "regions": ["cat=0,0,0.5,1"], "methods": ["inject1"], "steps": 2}
    Path("a.yaml").write_text(dump_yaml({"base": base, "parameters": {name: {"values": values}}}), encoding="utf-8")
    ended("ablate", "a.yaml", "--dry-run")
