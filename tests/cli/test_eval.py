"""``attnguide eval`` from the words to the tables, on models and detectors with random weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from attnguide.shapes.layouts import layout_scene, load_layouts
from attnguide.shapes.renderer import render
from tests import tiny
from tests.cli.conftest import Command
from tests.judges import networks

SEVEN = """id,category,prompt,obj1,bbox1,obj2,bbox2
000,binding,a red cat and a blue ball,cat,"0,0,256,512",ball,"256,0,512,512"
001,binding,a red cat and a dog,red cat,"0,0,256,512",dog,"300,300,300,300"
002,single,a dog,dog,"100,100,400,400",,
003,single,a cat,cat,"100,100,400,400",,
"""
QUIET = ("--logger", "none", "--out", "run")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.pipeline(length=77).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.owl(tmp_path_factory.mktemp("owl"))


def table(name: str = "records.csv") -> list[dict[str, str]]:
    with Path("run", name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_layout_benchmark_with_a_detector(attnguide: Command, model: Path, owl: Path) -> None:
    Path("7.csv").write_text(SEVEN)
    judged = ("--judge", f"detector={owl}", "--judge.threshold", 0.01)
    words = ("eval", "7.csv", "--box-size", 512, "--model", model, *judged, "--steps", 2)
    ended = attnguide(*words, "--method", "mask_guidance", "--seed", "0..1", *QUIET)
    assert ended.status == 1, ended.err  # a row without area is counted, not hidden
    assert "rows     18 ok, 4 refused" in ended.out  # three rows: 2 arms and a second try, two seeds; one refused in both arms
    records = {row["id"]: row for row in table()}
    assert records["001-mask_guidance-0"]["status"].startswith("refused:") and "no area" in records["001-plain-1"]["status"]
    assert records["000-plain-0-try1"]["status"] == "ok" and records["000-mask_guidance-1"]["presence"]
    lines = {(line["arm"], line["metric"]): line for line in table("table.csv") if not line["category"]}
    assert lines["plain", "presence"]["pictures"] == "6" and lines["plain", "presence"]["prompts"] == "3"
    assert lines["mask_guidance", "region_hit"]["rival"] == "best_of_2" and lines["best_of_2", "ap"]["mean"]
    text = Path("run", "table.md").read_text()
    assert "| mask_guidance | 6 | 2 |" in text and "`001` (plain, mask_guidance, best_of_2)" in text
    assert "## By category" in text and r"\begin{tabular}" in Path("run", "table.tex").read_text()
    assert sorted(path.name for path in Path("run", "sheets").iterdir()) == ["binding.png", "single.png"]
    page = Path("run", "report.html").read_text()
    assert "Difference at equal compute" in page and not Path("run", "sheet.png").exists()


def test_it_goes_on_where_it_stopped_and_is_made_again_from_its_configuration(attnguide: Command, model: Path) -> None:
    Path("7.csv").write_text(SEVEN)
    words = ("eval", "7.csv", "--box-size", 512, "--model", model, "--steps", 2, "--method", "mask_guidance", "--best-of", 0)
    assert attnguide(*words, "--limit", 1, *QUIET).status == 0
    before = table()
    Path("run", "records.csv").write_text("\n".join(Path("run", "records.csv").read_text().splitlines()[:-2]) + "\n")
    assert attnguide("eval", "--resume", "--out", "run").status == 0
    assert {row["id"] for row in table()} == {row["id"] for row in before} and len(before) == 4
    again = attnguide("eval", "--config", "run/config.yaml", "--out", "again")
    assert again.status == 0 and Path("again", "table.md").exists()
    other = attnguide(*words, "--limit", 2, "--resume", "--out", "run")
    assert other.status == 2 and "another 'limit'" in other.err


def test_the_embedded_benchmark_needs_no_words(attnguide: Command) -> None:
    words = ("--categories", "single", "boxes", "--limit", 1, "--steps", 2, "--method", "forward_layout")
    ended = attnguide("eval", "benchmark", *words, "--seed", 0, *QUIET)
    assert ended.status == 0, ended.err
    assert ended.out.count("arm, %") == 1 and "forward_layout" in ended.out
    assert {line["category"] for line in table("table.csv")} == {"", "single", "boxes"}


def test_geneval_without_regions_to_steer_by_is_judged(attnguide: Command, model: Path, owl: Path) -> None:
    row = {"tag": "two_object", "include": [{"class": "cat"}, {"class": "dog"}], "prompt": "a photo of a cat and a dog"}
    Path("geneval.jsonl").write_text(json.dumps(row))
    ended = attnguide("eval", "geneval.jsonl", "--model", model, "--judge", f"detector={owl}", "--steps", 2, *QUIET)
    assert ended.status == 0, ended.err
    assert table()[0]["region_hit"] and "best_of" not in ended.out


def test_methods_from_a_file_and_together(attnguide: Command) -> None:
    Path("own.yaml").write_text("methods: [{name: mask_guidance, step_size: 10.0}]\nsteps: 7\n")
    words = ("--method", "own.yaml", "--method", "inject5+mask_guidance", "--categories", "boxes", "--limit", 1, "--steps", 2)
    assert attnguide("eval", "benchmark", *words, "--best-of", 2, *QUIET).status == 0
    options = {row["method"]: row["options"] for row in table()}
    assert json.loads(options["mask_guidance"]) == {"mask_guidance": {"step_size": 10.0}}
    assert "inject5+mask_guidance" in options and len(table()) == 4


def test_pictures_that_exist(attnguide: Command) -> None:
    layouts = [layout for layout in load_layouts("benchmark") if layout.category == "boxes"][:2]
    for arm, shown in (("plain", layouts[::-1]), ("drawn", layouts)):
        Path("given", arm).mkdir(parents=True)
        for layout, scene in zip(layouts, shown, strict=True):
            render(layout_scene(scene)).save(Path("given", arm, f"{layout.id}-7.png"))
    ended = attnguide("eval", "benchmark", "--categories", "boxes", "--limit", 1, "--pictures", "given", *QUIET)
    assert ended.status == 0, ended.err
    lines = {(line["arm"], line["metric"]): line for line in table("table.csv")}
    assert lines["drawn", "region_hit"]["mean"] == "1" and float(lines["drawn", "region_hit"]["to_plain"]) > 0.5
    assert Path("run", "report.html").exists()


def test_rows_without_a_picture_are_counted(attnguide: Command) -> None:
    (first, *_) = load_layouts("benchmark")
    Path("given").mkdir()
    Image.new("RGB", (64, 64)).save(Path("given", f"{first.id}.png"))
    Path("given", "064.png").write_text("no picture")
    words = ("--categories", "single", "two_objects", "counting", "--limit", 1)
    ended = attnguide("eval", "benchmark", *words, "--pictures", "given", *QUIET)
    assert ended.status == 1 and "rows     1 ok, 2 refused" in ended.out
    text = Path("run", "table.md").read_text()
    assert "there is no picture of this row" in text and "064.png cannot be read" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "rows: expected a benchmark first"),
        (["nowhere.csv"], "rows: expected benchmark, development, or a file"),
        (["benchmark", "--tune-limit", "4"], "tune_limit: expected --tune beside it"),
        (["benchmrk"], "(did you mean 'benchmark'?)"),
        (["benchmark", "--categories", "boxs"], "(did you mean 'boxes'?)"),
        (["benchmark", "--method", "box_dif"], "(did you mean 'box_diff'?)"),
        (["benchmark", "--method", "stable", "--method", "stable"], "stable more than once"),
        (["benchmark", "--method", "missing.yaml"], "missing.yaml"),
        (["benchmark", "--best-of", "-1"], "best_of: expected a whole number"),
        (["benchmark", "--resume"], "resume: expected --out"),
        (["benchmark", "--pictures", "nowhere"], "pictures: expected a folder"),
        (["benchmark", "--pictures", "."], "out: expected --out"),
        (["benchmark", "--pictures", ".", "--out", "run"], "pictures: expected files named by rows"),
        (["benchmark", "--pictures", ".", "--out", "run", "--method", "stable"], "method: expected pictures alone"),
        (["benchmark", "--pictures", ".", "--out", "run", "--tune"], "tune: expected pictures alone"),
        (["benchmark", "--reference", "nowhere"], "reference: expected a folder"),
        (["benchmark", "--tune"], "tune: expected --method"),
        (["benchmark", "--tune", "--method", "best_of_k"], "tune: expected --method with an option that can be tuned"),
        (["benchmark", "--tune", "--method", "stable", "--judge", "none"], "tune: expected a judge"),
        (["benchmark", "--seed", "0..99999"], "at most 100,000 pictures"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(attnguide: Command, no_model: None, words: list[str], said: str) -> None:
    ended = attnguide("eval", *words)
    assert ended.status == 2 and said in ended.err and ended.err.count("\n") == 1
    assert not list(Path().iterdir())


def test_settings_are_chosen_on_other_rows_and_a_stopped_choice_goes_on(attnguide: Command, no_model_later: list[bool]) -> None:
    words = ("--categories", "boxes", "--limit", 1, "--steps", 2, "--method", "forward_layout", "--best-of", 0)
    ended = attnguide("eval", "benchmark", *words, "--tune", "--tune-limit", 1, "--negative-prompt", "gray", *QUIET)
    assert ended.status == 0, ended.err
    assert "tuning   knob 2 of 2: forward_layout stop" in ended.out and "(5 settings tried, region_hit" in ended.out
    with Path("run", "tune", "records.csv").open(newline="") as file:
        tried = list(csv.DictReader(file))
    assert len(tried) == 6 and not {row["prompt"] for row in tried} & {row["prompt"] for row in table()}
    text = Path("run", "table.md").read_text()
    assert "## Tuned settings" in text and "* tuned on: 1 row of the development file" in text
    assert "Tuned settings" in Path("run", "report.html").read_text()
    chosen = yaml.safe_load(Path("run", "tuned", "forward_layout.yaml").read_text())
    steered = next(row for row in table() if row["method"] == "forward_layout")
    given = json.loads(steered["options"] or "{}").get("forward_layout", {})
    assert chosen["methods"] == [{"name": "forward_layout", **given}] and chosen["steps"] == 2
    assert chosen["negative_prompt"] == "gray" and "true_cfg_scale" not in chosen
    assert "tune: true" in Path("run", "config.yaml").read_text()

    no_model_later.append(True)  # all is done: the choice is read from what is there
    assert attnguide("eval", "--resume", "--out", "run").status == 0
    no_model_later.clear()
    for name in ("config.yaml", "records.csv"):
        Path("run", name).unlink()
    kept = Path("run", "tune", "records.csv")
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:-1]))
    again = attnguide("eval", "--resume", "--out", "run")
    assert again.status == 0 and "resume   5 of 6 rows are complete" in again.out
    assert Path("run", "table.md").read_text().split("## Rows")[0] == text.split("## Rows")[0]


@pytest.fixture
def no_model_later(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Put something into the list, and no model can be loaded."""
    from attnguide.models import load

    asked: list[bool] = []
    load_model = load.load_model

    def loading(*words: object, **settings: object) -> object:
        assert not asked, "a model is loaded"
        return load_model(*words, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "load_model", loading)
    return asked


def test_a_file_without_a_development_part_is_split_by_prompt(attnguide: Command, model: Path, owl: Path) -> None:
    lines = [f'{i:03d},x,a cat and {name},cat,"0,0,256,512"' for i, name in enumerate(("a dog", "a ball", "red", "blue") * 2)]
    Path("7.csv").write_text("\n".join(["id,category,prompt,obj1,bbox1", *lines]))
    judged = ("--judge", f"detector={owl}", "--judge.threshold", 0.01)
    words = ("eval", "7.csv", "--box-size", 512, "--model", model, *judged, "--steps", 1, "--method", "inject1")
    ended = attnguide(*words, "--method.start", 0, "--method", "pag", "--best-of", 0, "--tune", "--strict", *QUIET)
    assert ended.status == 0, ended.err
    with Path("run", "tune", "split.csv").open(newline="") as file:
        parts = {row["id"]: row["part"] for row in csv.DictReader(file)}
    assert sorted(parts.values()) == ["development"] * 2 + ["test"] * 6
    assert {row["id"].split("-")[0] for row in table()} == {id for id, part in parts.items() if part == "test"}
    assert "2 rows of 1 of the file's 4 prompts" in Path("run", "table.md").read_text()


def test_prompts_without_objects_leave_a_detector_nothing_to_look_for(attnguide: Command, model: Path, owl: Path) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    ended = attnguide("eval", "prompts.txt", "--model", model, "--judge", f"detector={owl}", "--steps", 1, *QUIET)
    assert ended.status == 0, ended.err
    assert ended.out.count("not judged: the rows name no object") == 1 and "--judge clip=MODEL" in ended.out
    assert "Not judged" in Path("run", "table.md").read_text()
