"""Tables of rows in files."""

import json
from pathlib import Path

import pytest

from attnguide.metrics.asked import asked_of
from attnguide.prompt.nested import settle
from attnguide.rows.samples import checked_samples, sample_from_dict, sample_to_dict
from attnguide.rows.tables import read_samples, read_table
from attnguide.types import Sample


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


YAML = """\
steps: 5
cfg_scale: 1e1
samples:
  - prompt: a cat and a dog
    seed: 3
    regions:
      - {phrase: cat, box: [0, 0, 0.5, 1]}
      - dog=0.5,0,1,1
    methods:
      - name: mask_guidance
        options: {scale: 1e-3}
  - id: second
    prompt: a cat
    steps: 9
"""


def test_yaml_with_common_values(tmp_path: Path) -> None:
    first, second = read_samples(write(tmp_path, "rows.yaml", YAML), defaults={"seed": 11, "steps": 2})
    assert (first.id, first.seed, first.steps, first.cfg_scale) == ("0000", 3, 5, 10.0)
    assert [region.box for region in first.regions] == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)]
    assert first.methods[0].options == {"scale": 0.001}
    assert (second.id, second.seed, second.steps, second.regions) == ("second", 11, 9, ())


def test_yaml_list_and_json_lines_agree(tmp_path: Path) -> None:
    lines = '{"id": "x", "prompt": "a cat", "methods": ["inject1"], "regions": ["cat=0,0,1,1"]}\n\n{"prompt": "b"}\n'
    rows = read_samples(write(tmp_path, "rows.jsonl", lines))
    again = read_samples(
        write(tmp_path, "rows.yml", "- {id: x, prompt: a cat, methods: [inject1], regions: ['cat=0,0,1,1']}\n- prompt: b\n")
    )
    assert [(r.id, r.prompt, r.method) for r in rows] == [(r.id, r.prompt, r.method) for r in again]
    assert rows[1].id == "0001"


def test_masks_lie_beside_the_table(tmp_path: Path) -> None:
    (row,) = read_samples(write(tmp_path, "rows.yaml", "- {prompt: a cat, regions: [cat=cat.png]}\n"))
    assert row.regions[0].mask == tmp_path / "cat.png"


BENCHMARK = """\
id,category,prompt,obj1,bbox1,obj2,bbox2,method,options,seed
000,two,"A cat, a dog",cat,"64,0,128,256",dog,"0,0,64,256",inject1+mask_guidance,"{""inject1"": {""scale"": 2}}",5
001,one,A cat and a cat,cat,"0,0,64,256",cat,"64,0,128,256",plain,,
"""


def test_csv_of_a_layout_benchmark(tmp_path: Path) -> None:
    first, second = read_samples(write(tmp_path, "rows.csv", BENCHMARK), size=(256, 128))
    assert first.regions[0].box == (0.5, 0, 1, 1) and first.regions[1].box == (0, 0, 0.5, 1)
    assert first.method == "inject1+mask_guidance" and first.methods[0].options == {"scale": 2} and first.seed == 5
    assert first.tags == {"category": "two"}
    assert [region.occurrence for region in second.regions] == [None, 1] and second.methods == ()


def test_csv_regions_and_tags_as_json(tmp_path: Path) -> None:
    text = 'prompt,regions,tags\na cat,"[{""phrase"": ""cat"", ""box"": [0, 0, 1, 1]}]","{""k"": 1}"\n'
    (row,) = read_samples(write(tmp_path, "rows.csv", text))
    assert row.regions[0].box == (0, 0, 1, 1) and row.tags == {"k": 1}


def test_csv_of_a_distilled_model(tmp_path: Path) -> None:
    text = "prompt,cfg_scale,true_cfg_scale,negative_prompt\na cat,3.5,4,blurry\na dog,,,\n"
    first, second = read_samples(write(tmp_path, "rows.csv", text))
    assert (first.cfg_scale, first.true_cfg_scale, first.negative_prompt) == (3.5, 4.0, "blurry")
    assert (second.true_cfg_scale, second.negative_prompt) == (1.0, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.yaml", "- prompt: a\n  seed: x\n", "line 2: seed must be a whole number"),
        ("rows.yaml", "steps: 0\nsamples:\n  - prompt: a\n", "line 1: steps must be at least 1"),
        ("rows.yaml", "- prompt: a\n- prompt: a\n  sed: 1\n", "line 3: A row has no key 'sed'"),
        ("rows.yaml", "- prompt: a\n  prompt: b\n", "line 2: key 'prompt' stands twice"),
        ("rows.yaml", "- ? [a, b]\n  : c\n", "line 1: expected a name as key; got a list or a mapping"),
        ("rows.yaml", "- &row\n  prompt: a\n  tags: *row\n", "an alias stands inside what it stands for"),
        ("rows.yaml", "- prompt: [a\n", "line 2: not valid YAML"),
        ("rows.yaml", "steps: 4\n", "line 1: key 'samples' is missing"),
        ("rows.yaml", "- prompt: a\n- b\n", "line 2: a row is a mapping"),
        ("rows.yaml", "hello\n", "line 1: a table is a list of rows"),
        ("rows.yaml", "[]\n", "has no rows"),
        ("rows.yaml", "", "line 1: a table is a list"),
        ("rows.yaml", "- {id: a, prompt: a}\n- {id: a, prompt: b}\n", "'a' stands for more than one row"),
        ("rows.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: not valid JSON"),
        ("rows.jsonl", '{"prompt": "a"}\n[1]\n', "line 2: a row is a JSON object"),
        ("rows.jsonl", '{"prompt": "a", "steps": 1.5}\n', "line 1: steps must be a whole number"),
        ("rows.csv", "id,seed\na,1\n", "line 1: column 'prompt' is missing"),
        ("rows.csv", "prompt,prompt\na,b\n", "line 1: column 'prompt' stands twice"),
        ("rows.csv", "prompt,steps\na,5\nb,five\n", "line 3: steps must be a whole number; got 'five'"),
        ("rows.csv", "promt,prompt\na,b\n", r"line 1: unknown column 'promt' \(did you mean 'prompt'\?\)"),
        ("rows.csv", "prompt,seed\na\n", "line 2: has fewer cells"),
        ("rows.csv", "prompt,seed\na,1,2\n", "line 2: has more cells"),
        ("rows.csv", 'prompt,obj1,bbox1\na,a,"0,0,9,9"\n', "line 2: bbox1 must be fractions"),
        ("rows.csv", 'prompt,obj1,bbox1\na,a,"0,0,9"\n', "line 2: bbox1 must be four numbers"),
        ("rows.csv", 'prompt,bbox1\na,"0,0,1,1"\n', "line 2: bbox1 has a box but obj1 has no phrase"),
        ("rows.csv", 'prompt,options\na,"{""inject1"": {}}"\n', "line 2: options name the method 'inject1'"),
        ("rows.csv", "prompt,tags\na,{\n", "line 2: tags must be JSON"),
        ("rows.xml", "a", "must be a file ending in .yaml"),
    ],
)
def test_malformed_tables_name_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_samples(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_samples(tmp_path / "rows.csv")


BROKEN = {
    "rows.csv": "id,prompt,obj1,bbox1,obj2,bbox2\n"
    '000,a cat,cat,"0,0,64,64",,\n030,a cat and a dog,cat,"5,5,64,64",dog,"64,16,64,32"\n031,a cow,cow,"0,64,64,32",,\n',
    "rows.yaml": "- {id: '000', prompt: a cat, regions: ['cat=0,0,1,1']}\n"
    "- {id: '030', prompt: a dog, regions: ['dog=0.5,0.125,0.5,0.25']}\n"
    "- {id: '031', prompt: a cow, regions: [{phrase: cow, box: [0, 0.5, 0.5, 0.25]}]}\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_whose_box_has_no_area_is_read_with_its_problem(tmp_path: Path, name: str) -> None:
    size = (128, 128) if name.endswith(".csv") else None
    good, narrow, upside_down = read_samples(write(tmp_path, name, BROKEN[name]), size=size)
    assert good.problem is None and good.regions[0].phrase == "cat"
    assert narrow.problem is not None and "Region 'dog': box must be" in narrow.problem
    assert "got 0.5,0.125,0.5,0.25, which has no area" in narrow.problem and narrow.regions == ()
    assert upside_down.problem is not None and "'cow'" in upside_down.problem
    checked_samples([good, narrow, upside_down])
    assert sample_from_dict(sample_to_dict(narrow)).problem == narrow.problem


def test_a_row_whose_phrase_is_missing_is_read_with_its_problem(tmp_path: Path) -> None:
    text = "- {prompt: a cat, regions: ['cat=0,0,1,1']}\n- {prompt: a cat, regions: ['dog=0,0,1,1']}\n"
    good, other = read_samples(write(tmp_path, "rows.yaml", text))
    assert good.problem is None and other.problem is not None and "'dog' does not occur" in other.problem


def test_a_table_of_problems_only_is_refused() -> None:
    with pytest.raises(ValueError, match="Row 'a': too thin"):
        checked_samples([Sample("a", "a cat", problem="too thin"), Sample("b", "a cat", problem="too far")])


def test_a_box_that_leaves_the_picture_refuses_the_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: Region 'cat': box must be .*got 0,0,1.5,1"):
        read_samples(write(tmp_path, "rows.yaml", "- {prompt: a cat, regions: ['cat=0,0,1.5,1']}\n"))


def test_objects_inside_longer_objects_take_their_own_words(tmp_path: Path) -> None:
    text = 'prompt,obj1,obj2,obj3\n"a hot dog, a dog and a dog",dog,hot dog,dog\n'
    (row,) = read_samples(write(tmp_path, "rows.csv", text))
    assert [region.occurrence for region in settle(row.prompt, row.regions)] == [1, 0, 2]


def test_json_is_read_like_yaml(tmp_path: Path) -> None:
    text = json.dumps({"steps": 3, "samples": [{"prompt": "a cat 😀", "regions": {"cat": [0, 0, 0.5, 1]}}]})
    (row,) = read_samples(write(tmp_path, "rows.json", text))
    assert (row.steps, row.prompt, row.regions[0].box) == (3, "a cat 😀", (0, 0, 0.5, 1))


def test_regions_as_a_mapping_from_phrases_to_places(tmp_path: Path) -> None:
    text = "- {prompt: a cat and a dog, regions: {cat: [0, 0, 0.5, 1], dog: dog.png}}\n"
    (row,) = read_samples(write(tmp_path, "rows.yaml", text))
    assert row.regions[0].box == (0, 0, 0.5, 1) and row.regions[1].mask == tmp_path / "dog.png"


def test_yaml_has_no_old_meanings(tmp_path: Path) -> None:
    (row,) = read_samples(write(tmp_path, "rows.yaml", "- {id: 007, prompt: 1:30, negative_prompt: no, cfg_scale: 1e1}\n"))
    assert (row.id, row.prompt, row.negative_prompt, row.cfg_scale) == ("7", "1:30", "no", 10.0)


def test_columns_that_say_nothing_of_a_row_are_named(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "rows.csv", "prompt,category,method,place\na cat,one,plain,t\nb,two,,t\n"))
    assert table.tags == ("category", "place") and table.named == {"0000"}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("prompt,obj1,boxes", "unknown column 'boxes' beside 'obj1'"),
        ("prompt,obj1,bbox", r"unknown column 'bbox' \(did you mean 'bbox1'\?\)"),
        ("prompt,guidance_scale", r"unknown column 'guidance_scale' \(did you mean 'cfg_scale'\?\)"),
        ("promt,seed", r"column 'prompt' is missing"),
        (",".join(["prompt", *(f"c{index}" for index in range(1000))]), "a table must have at most 1000 columns; got 1001"),
    ],
)
def test_columns_that_cannot_be_meant(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: {message}"):
        read_samples(write(tmp_path, "rows.csv", f"{head}\n"))


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnguide.rows.tables.MOST_ROWS", 2)
    with pytest.raises(ValueError, match="at most 2 rows; got more"):
        read_samples(write(tmp_path, "rows.jsonl", '{"prompt": "a"}\n' * 3))


@pytest.mark.parametrize(("kind", "place"), [("yaml", 1), ("csv", 2)])
def test_tables_of_the_docs_page_are_read(tmp_path: Path, kind: str, place: int) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    first, *_ = read_samples(write(tmp_path, f"rows.{kind}", page.split("```text\n")[place].split("```")[0]))
    assert [region.box for region in first.regions] == [(0.05, 0.3, 0.45, 0.7), (0.55, 0.3, 0.95, 0.7)]


def test_the_docs_pages_tag_is_what_its_picture_is_judged_by(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    text = next(block for block in page.split("```text\n")[1:] if "asked:" in block).split("```")[0]
    (row,) = read_samples(write(tmp_path, "rows.yaml", text))
    asked = asked_of(row)
    assert [(one.label, one.count, len(one.boxes)) for one in asked.objects] == [("clock", 2, 2), ("blue dog", 1, 1)]
    assert asked.relations == ((0, "left of", 1),) and row.problem is None
