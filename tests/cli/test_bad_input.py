"""What cannot work is told in one line that names the mistake, with status 2, before anything is loaded or written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from attnguide.run_folder.folder import check_run_folder
from tests import tiny

from .conftest import Command

FILES = {
    "steps.yaml": "prompt: a cat\n\nsteps: ten\n",
    "key.yaml": "prompt: a cat\nstep: 10\n",
    "open.yaml": "prompt: [a cat\nsteps: 2\n",
    "list.yaml": "- prompt\n",
    "empty.yaml": "# nothing yet\n",
    "nan.yaml": "prompt: a cat\nregions: ['cat=0,0,1,1']\nmethods:\n- name: mask_guidance\n  scale: .nan\n",
    "method.yaml": "prompt: a cat\nmethods:\n- nmae: mask_guidance\n",
    "rows.yaml": "- prompt: a cat\n- promt: a dog\n",
    "seed.csv": "prompt,seed\na cat,1\na dog,x\n",
    "column.csv": "prompt,sead\na cat,1\n",
    "short.csv": "prompt,seed\na cat\n",
    "empty.csv": "prompt,seed\n",
    "phrase.csv": 'prompt,obj1,bbox1\na cat,dog,"0,0,1,1"\n',
    "open.jsonl": '{"prompt": "a cat"}\n{"prompt": "a dog"\n',
    "text.png": "no picture\n",
    "rows.xml": "a cat\n",
    "options.yaml": "- prompt: a cat\n  regions: ['cat=0,0,1,1']\n  methods: mask_guidance\n"
    "- prompt: a cat\n  regions: ['cat=0,0,1,1']\n  methods: {name: mask_guidance, options: {scale: .inf}}\n",
}

REGION = ["--region", "red cat=0,0,0.5,1"]
GUIDED = [*REGION, "--method", "mask_guidance"]

WITH_PROMPT: list[tuple[list[str], list[str]]] = [
    # words and places
    (["--region", "red cst=0,0,1,1"], ["'red cst'", "nearest words", "'red cat'"]),
    (["--region", "red cat[2]=0,0,1,1"], ["'red cat'", "once", "got 2"]),
    (["--region", "red cat=0.5,0,0.5,1"], ["'red cat'", "x0 < x1", "0.5,0,0.5,1"]),
    (["--region", "red cat=0.5,0,1.5,1"], ["'red cat'", "<= 1", "0.5,0,1.5,1"]),
    (["--region", "red cat=nan,0,1,1"], ["'red cat'", "nan,0,1,1"]),
    (["--region", "red cat=0,0,1"], ["'red cat'", "four numbers", "'0,0,1'"]),
    (["--region", "red cat=gone.png"], ["Mask file", "gone.png", "does not exist"]),
    (["--region", "red cat=text.png"], ["Mask file", "text.png", "not a picture"]),
    (["--region", "=0,0,1,1"], ["PHRASE=x0,y0,x1,y1", "'=0,0,1,1'"]),
    (["--region"], ["--region", "got nothing"]),
    (["--group", "purple ball"], ["'purple'"]),
    # names
    ([*REGION, "--method", "mask_guidence"], ["'mask_guidence'", "did you mean 'mask_guidance'", "attend_and_excite"]),
    ([*GUIDED, "--method.stepsize", "3"], ["mask_guidance", "'stepsize'", "did you mean 'step_size'"]),
    ([*GUIDED, "--method.step_rule", "fast"], ["step_rule", "sqrt_linear", "'fast'"]),
    ([*GUIDED, "--method.scale", "nan"], ["scale", "finite number", "'nan'"]),
    ([*GUIDED, "--method.step_size", "big"], ["step_size", "finite number", "'big'"]),
    ([*GUIDED, "--method.levels"], ["--method.levels", "got nothing"]),
    (["--method.scale", "2"], ["--method.scale", "--method before it"]),
    (["--method", "mask_guidance"], ["'mask_guidance'", "needs at least one region"]),
    (["--method", "mask_guidance", "--region", "red cat"], ["'mask_guidance'", "region with a place"]),
    (["--scheduler", "eulr"], ["'eulr'", "did you mean 'euler'", "unipc"]),
    (["--dtype", "fp8"], ["'fp8'", "fp32, fp16, bf16"]),
    (["--device", "gpu"], ["'gpu'", "cuda"]),
    (["--logger", "wandbb"], ["'wandbb'", "tensorboard"]),
    (["--trainer.precision", "16-mixed"], ["trainer", "precision", "--dtype"]),
    (["--trainer.callbacks", "[]"], ["trainer", "callbacks"]),
    (["--trainer.fast_dev_run", "true"], ["trainer", "fast_dev_run"]),
    (["--stpes", "3"], ["'--stpes'", "did you mean '--steps'"]),
    (["more", "words"], ["quotes", "'more words'"]),
    # numbers
    (["--steps", "-3"], ["steps", "at least 1", "'-3'"]),
    (["--steps", "0"], ["steps", "at least 1", "'0'"]),
    (["--steps", "2.5"], ["steps", "whole number", "'2.5'"]),
    (["--steps"], ["--steps", "got nothing"]),
    (["--seed"], ["--seed", "got nothing"]),
    (["--seed", "-1"], ["seed", "from 0 to", "'-1'"]),
    (["--seed", "5..2"], ["seed", "'5..2'"]),
    (["--seed", "1", "0..2"], ["seed", "1 more than once"]),
    (["--cfg-scale", "nan"], ["cfg_scale", "finite number", "'nan'"]),
    (["--height", "100"], ["height", "multiple of 8", "'100'"]),
    (["--batch-size", "0"], ["batch_size", "at least 1", "'0'"]),
    (["--box-size", "64"], ["box_size", "--rows"]),
    (["--rows", "seed.csv", "--box-format", "cxcywh"], ["box_format", "xyxy", "'cxcywh'"]),
    # collections of settings
    (["--wandb.projct", "x"], ["wandb", "'projct'", "did you mean 'project'"]),
    (["--wandb.tags", "3"], ["wandb", "tags", "expected text", "3"]),
    (["--wandb", "x"], ["wandb", "--wandb.KEY", "'x'"]),
    (["--trainer", "3"], ["trainer", "--trainer.KEY", "'3'"]),
    # files
    (["--config", "gone.yaml"], ["config", "'gone.yaml'", "does not exist"]),
    (["--config", "steps.yaml"], ["steps.yaml, line 3", "steps", "'ten'"]),
    (["--config", "key.yaml"], ["key.yaml, line 2", "'step'", "did you mean 'steps'"]),
    (["--config", "open.yaml"], ["open.yaml, line", "not valid YAML"]),
    (["--config", "list.yaml"], ["list.yaml, line 1", "name: value"]),
    (["--config", "empty.yaml"], ["empty.yaml", "name: value", "empty"]),
    (["--config", "nan.yaml"], ["nan.yaml, line 3", "scale", "nan"]),
    (["--config", "method.yaml"], ["method.yaml, line 2", "expected a name"]),
    (["--config", "text.png"], ["text.png, line 1"]),
    (["--rows", "seed.csv"], ["rows", "both"]),
    (["--resume"], ["resume", "--out"]),
]

WITHOUT_PROMPT: list[tuple[list[str], list[str]]] = [
    ([""], ["prompt", "words"]),
    (["--region", "cat=0,0,1,1"], ["prompt", "regions"]),
    (["--rows", "seed.csv"], ["seed.csv, line 3", "seed", "'x'"]),
    (["--rows", "column.csv"], ["column.csv, line 1", "'sead'", "did you mean 'seed'"]),
    (["--rows", "short.csv"], ["short.csv, line 2", "fewer cells"]),
    (["--rows", "empty.csv"], ["empty.csv", "no rows"]),
    (["--rows", "phrase.csv"], ["'dog'", "'a cat'"]),
    (["--rows", "rows.yaml"], ["rows.yaml, line 2", "'promt'", "did you mean 'prompt'"]),
    (["--rows", "open.jsonl"], ["open.jsonl, line 2", "not valid JSON"]),
    (["--rows", "rows.xml"], ["rows.xml", ".csv"]),
    (["--rows", "gone.csv"], ["gone.csv", "does not exist"]),
    (["--rows", "seed.csv", "--box-size", "axb"], ["box_size", "'axb'"]),
]


def _write_files(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).write_text(text)


def _listing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*"))


def _check(attnguide: Command, words: list[str], says: list[str]) -> None:
    _write_files(Path.cwd())
    before = _listing(Path.cwd())
    ended = attnguide("sample", *words)
    assert ended.status == 2
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    for part in says:
        assert part in ended.err
    assert _listing(Path.cwd()) == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("words", "says"), WITH_PROMPT, ids=lambda value: " ".join(value))
def test_settings(attnguide: Command, words: list[str], says: list[str]) -> None:
    _check(attnguide, [tiny.PROMPT, *words], says)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("words", "says"), WITHOUT_PROMPT, ids=lambda value: " ".join(value) or "empty")
def test_tables(attnguide: Command, words: list[str], says: list[str]) -> None:
    _check(attnguide, words, says)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--device", "cuda:77"], ["'cuda:77'", "not available"]),
        (["--trainer.devicez", "2"], ["trainer", "devicez"]),
        (["--trainer.accelerator", "abacus"], ["trainer", "abacus"]),
        (["--trainer.devices", "2", "--device", "cpu"], ["out", "--out", "2 processes"]),
        ([*GUIDED, "--method.losses", "{mas: 1}"], ["losses", "mass", "mas"]),
        ([*GUIDED, "--method.iterations", "-1"], ["iterations", "at least 0", "-1"]),
        (
            [*GUIDED, "--method.levels", "coarse"],
            ["'mask_guidance'", "levels", "whole numbers, like [0, 1]", "'coarse'"],
        ),
        (
            [*GUIDED, "--method.levels", "0", "1"],
            ["--method.levels", "a list in brackets: '[0,1]'", "got 0 1"],
        ),
        (["--prompt", "a cat"], ["prompt: expected by itself, in quotes; --prompt is no option"]),
        ([*GUIDED, "--method.start", "0.6", "--method.stop", "0.4"], ["start <= stop", "0.6 to 0.4"]),
        (["--method", "attend_and_excite", "--method.thresholds", "0.5", *REGION], ["thresholds", "mapping to numbers", "0.5"]),
        (["--method", "attend_and_excite", "--method.max_refinements", "-1", *REGION], ["max_refinements", "at least 1", "-1"]),
        (["--method", "best_of_k", "--method.k", "0"], ["k must be a whole number of at least 1", "0"]),
        (["--method", "best_of_k", "--method", "best_of_k"], ["Only one baseline"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_only_the_libraries_and_methods_know_is_still_told_before_a_model_is_loaded(
    attnguide: Command, words: list[str], says: list[str]
) -> None:
    _check(attnguide, [tiny.PROMPT, *words], says)


@pytest.mark.usefixtures("no_model")
def test_options_of_every_row_are_judged_before_a_model_is_loaded(attnguide: Command) -> None:
    _check(attnguide, ["--rows", "options.yaml"], ["Row '0001'", "scale must be finite", "inf"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "gone"], ["'gone'", "not found", "owner/name"]),
        (["--model", "./gone.safetensors"], ["gone.safetensors", "not found"]),
        (["--model", "nobody/nothing"], ["'nobody/nothing'", "could not be loaded", "offline", "'shapes'"]),
        (["--model", "rows.xml"], ["rows.xml", ".safetensors"]),
        (["--model-config", "gone"], ["model", "config is for a single .safetensors file", "'gone'", "'shapes'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_model(attnguide: Command, words: list[str], says: list[str]) -> None:
    _check(attnguide, [tiny.PROMPT, *words], says)


def test_prompt_longer_than_the_model_reads(attnguide: Command, tiny_folder: Path) -> None:
    prompt = "a red cat and " * 8 + "a blue ball of left dog"
    _check(attnguide, [prompt, "--model", str(tiny_folder)], ["24 tokens", "lost words", "left dog"])


def test_region_that_vanishes_at_a_map_size(attnguide: Command, tiny_folder: Path) -> None:
    words = ["--region", "red cat=0.4,0.4,0.41,0.41", "--method", "mask_guidance", "--method.losses", "{inside: 1}"]
    _check(attnguide, [tiny.PROMPT, *words, "--model", str(tiny_folder)], ["'red cat'", "no cell"])


def test_fewer_steps_than_a_scheduler_takes(attnguide: Command, tiny_folder: Path) -> None:
    words = ["--scheduler", "pndm", "--steps", "2", "--model", str(tiny_folder)]
    _check(attnguide, [tiny.PROMPT, *words], ["steps", "PNDMScheduler", "got 2"])


@pytest.mark.usefixtures("no_model")
def test_folder_of_another_run(attnguide: Command) -> None:
    Path("held").mkdir()
    Path("held/records.csv").write_text("id\n")
    _check(attnguide, [tiny.PROMPT, "--out", "held"], ["out", "'held'", "already holds a run"])


@pytest.mark.usefixtures("no_model")
def test_folder_below_a_file(attnguide: Command) -> None:
    _check(attnguide, [tiny.PROMPT, "--out", "rows.xml/run"], ["out", "rows.xml", "is a file"])


@pytest.mark.usefixtures("no_model")
def test_folder_that_cannot_be_written(attnguide: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    _check(attnguide, [tiny.PROMPT, "--out", "locked"], ["out", "'locked'", "not writable"])


@pytest.mark.usefixtures("no_model")
def test_empty_mask(attnguide: Command) -> None:
    Image.new("L", (8, 8)).save("black.png")
    _check(attnguide, [tiny.PROMPT, "--region", "red cat=black.png"], ["black.png"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["smaple"], ["'smaple'", "did you mean 'sample'"]),
        (["methods", "mask_guidence"], ["'mask_guidence'", "did you mean 'mask_guidance'"]),
        (["methods", "a", "b"], ["name", "'b'"]),
        (["models", "x"], ["'x'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_other_commands(attnguide: Command, words: list[str], says: list[str]) -> None:
    ended = attnguide(*words)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert all(part in ended.err for part in says)


def test_no_run_to_go_on_with(attnguide: Command) -> None:
    found = attnguide("sample", "--resume", "--out", "never")
    assert found.status == 2 and not Path("never").exists()
    assert "out: expected the folder of a run to go on with; 'never' holds no config.yaml" in found.err


def test_no_prompt_to_go_on_with(attnguide: Command) -> None:
    Path("cut").mkdir()
    Path("cut", "config.yaml").write_text("steps: 3\n")
    found = attnguide("sample", "--resume", "--out", "cut")
    assert found.status == 2
    assert "'cut' holds a config.yaml that names no prompt and no rows" in found.err


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.yaml", "[1,2\n", "is damaged: it is no YAML"),
        ("config.yaml", "- 1\n", "is damaged: expected settings"),
        ("records.csv", "a,b\n1,2\n", "expected a column 'id'"),
    ],
)
def test_damaged_folder(attnguide: Command, file: str, text: str, says: str) -> None:
    Path("run").mkdir()
    Path("run", file).write_text(text)
    ablation = Path("ablation.yaml")
    ablation.write_text("base: {prompt: a cat, steps: 1}\nparameters: {cfg_scale: {values: [1, 2]}}\n")
    found = attnguide("ablate", ablation, "--resume", "--out", "run")
    assert found.status == 2 and says in found.err


def test_which_setting_of_a_resumed_run_differs(attnguide: Command) -> None:
    Path("run").mkdir()
    Path("run", "config.yaml").write_text("rows:\n- {id: a, steps: 2}\n")
    check = pytest.raises(ValueError, match=r"another 'rows\[0\].steps' \(2, now 3\)")
    with check:
        check_run_folder("run", {"rows": [{"id": "a", "steps": 3}]}, resume=True)


def test_a_key_of_a_configuration_stands_once(attnguide: Command) -> None:
    Path("twice.yaml").write_text("prompt: a cat\nsteps: 2\nsteps: 3\n")
    found = attnguide("sample", "--config", "twice.yaml")
    assert found.status == 2 and "line 3: key 'steps' stands twice" in found.err


@pytest.mark.parametrize("name", ["../escape", "[a, b]", ".hidden"])
def test_names_of_ablations(attnguide: Command, name: str) -> None:
    Path("a.yaml").write_text(f"name: {name}\nbase: {{prompt: a cat}}\nparameters: {{cfg_scale: {{values: [1, 2]}}}}\n")
    found = attnguide("ablate", "a.yaml")
    assert found.status == 2 and "a.yaml, line 1: name: expected text that can name a folder" in found.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--guidance-scale", "3"], ["'--guidance-scale'", "did you mean '--cfg-scale'"]),
        (["--num-inference-steps=3"], ["'--num-inference-steps'", "did you mean '--steps'"]),
        (["--height", "100000"], ["height must be at most 8192; got 100000"]),
        (["--seed", "0..999999"], ["seed", "at most 100,000 seeds", "0..999999"]),
        (["--seed", "1_0"], ["seed", "whole numbers", "1_0"]),
        (["--seed", "9" * 60], ["seed", "whole numbers"]),
        (["--cfg-scale", "1_0"], ["cfg_scale", "finite number", "1_0"]),
        (["--steps", "1000000"], ["steps", "at most 10000"]),
        ([*GUIDED, "--method.name", "inject1"], ["--method.name", "an option of mask_guidance"]),
        ([*GUIDED, "--method.options", "{name: inject1}"], ["--method.options", "an option of mask_guidance"]),
        (["--config", "other.yaml"], ["other.yaml, line 2", "no option 'name'"]),
        (["--config", "twice.yaml"], ["twice.yaml, line 2", "option 'scale' is given twice"]),
        (["--config", "bomb.yaml"], ["bomb.yaml, line 8", "aliases must add at most 100,000 entries"]),
        (["--config", "deep.yaml"], ["deep.yaml, line 1", "nested more than 40 deep"]),
        (["--config", "set.yaml"], ["set.yaml, line 1", "expected a plain mapping", "set"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_reading_is_bounded(attnguide: Command, words: list[str], says: list[str]) -> None:
    bomb = [f"  - &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 12)]
    Path("bomb.yaml").write_text("\n".join(["steps: 2", "regions:", "  - &l0 [x, x, x, x, x, x, x, x, x]", *bomb]))
    Path("deep.yaml").write_text("prompt: " + "[" * 100_000)
    Path("set.yaml").write_text("trainer: !!set {a, b}\n")
    Path("other.yaml").write_text("regions: ['red cat=0,0,1,1']\nmethods:\n- {name: inject1, options: {name: inject2}}\n")
    Path("twice.yaml").write_text("regions: ['red cat=0,0,1,1']\nmethods:\n- {name: inject1, scale: 1, options: {scale: 2}}\n")
    _check(attnguide, [tiny.PROMPT, *words], says)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("key", ["method.name", "inject1.name", "method.options"])
def test_no_option_of_an_ablation_is_another_method(attnguide: Command, key: str) -> None:
    base = "{prompt: a cat, regions: ['cat=0,0,1,1'], methods: [inject1]}"
    Path("a.yaml").write_text(f"base: {base}\nparameters: {{{key}: {{values: [inject2, inject3]}}}}\n")
    found = attnguide("ablate", "a.yaml", "--dry-run")
    assert found.status == 2 and f"a.yaml, line 2: {key}: expected an option of a method by its name" in found.err


@pytest.mark.usefixtures("no_model")
def test_cells_are_counted_before_they_are_made(attnguide: Command) -> None:
    axes = "".join(f"  {name}: {{values: {list(range(1, 102))}}}\n" for name in ("cfg_scale", "steps", "method.scale"))
    base = "{prompt: a cat, regions: ['cat=0,0,1,1'], methods: [inject1]}"
    Path("a.yaml").write_text(f"base: {base}\nparameters:\n{axes}")
    found = attnguide("ablate", "a.yaml", "--dry-run")
    assert found.status == 2 and "expected axes that span at most 100,000 cells; got 1,030,301" in found.err
