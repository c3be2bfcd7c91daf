"""Published code beside ours: what is executed of a file, what is put back, what the table says of what is not there."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import compare_references
from compare_references import REFERENCES
from references.base import Comparison, Reference, compared
from references.boxes import random_boxes
from references.foreign import NotFoundError, load, tamed
from references.tensors import PROMPT, targets, tokenized

from attnguide.types import Region

FOREIGN = """
import a_module_that_nobody_has
from . import another

raise RuntimeError("the file as a whole is not executed")

@another.autocast("cuda")
def twice(values: another.Tensor, offset: List[int] = (0, 1)) -> another.Tensor:
    import math
    return SIZE * values + offset[0] * known

SIZE = 2
table = {}
table["size"] = SIZE

class Blur(nn.Module):
    radius: Unknown = 3

    @property
    def width(self):
        return 2 * self.radius + 1

class Pipeline(Unknown):
    @torch.no_grad()
    def _loss(self, values):
        return self.scale * twice(values).sum()
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.py"
    path.write_text(FOREIGN)
    return path


def test_only_named_definitions_are_executed(foreign: Path) -> None:
    scope = load(foreign, ["twice", "SIZE", "table", "Blur", "_loss"], {"known": 1})
    assert scope["twice"](3) == 6 and scope["twice"](3, offset=[5]) == 11
    assert scope["Blur"]().width == 7  # decorators inside of a class stay
    assert scope["table"] == {"size": 2}
    assert "Pipeline" not in scope
    values = torch.ones(2, requires_grad=True)
    assert scope["_loss"](type("Self", (), {"scale": 3}), values).requires_grad  # without its decorator


def test_what_is_not_there_is_named(foreign: Path) -> None:
    with pytest.raises(NotFoundError, match=r"thrice, SIZES in .*pipeline\.py"):
        load(foreign, ["twice", "thrice", "SIZES"])
    with pytest.raises(NotFoundError, match=r"gone\.py"):
        load(foreign.with_name("gone.py"), ["twice"])


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails: bool, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    def state() -> list[object]:
        own = [torch.Tensor.cuda, nn.Module.cuda, torch.cuda.is_available, torch.get_default_dtype()]
        return [*own, "cuda" in vars(torch.Tensor), sys.stdout]

    before = state()
    try:
        with tamed():
            moved = nn.Linear(2, 2).cuda()(torch.zeros(2).cuda("cuda:1", non_blocking=True))
            print("a foreign line")
            torch.meshgrid(torch.arange(2), torch.arange(2))  # warns
            assert moved.dtype == torch.float64 and not torch.cuda.is_available()
            if fails:
                raise KeyError("anything")
    except KeyError:
        assert fails
    assert state() == before
    assert not capsys.readouterr().out and not recwarn.list


def test_differences_by_hand() -> None:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    assert compared("a loss", (leaf**2).sum(), 1.1 * (leaf**2).sum()).gradient is None
    found = compared("a loss", (leaf**2).sum(), 1.1 * (leaf**2).sum(), [leaf])
    assert (found.value, found.gradient) == (pytest.approx(0.1), pytest.approx(0.1))
    constant = compared("no gradient", leaf.sum(), leaf.sum().detach() + 0 * leaf.sum(), [leaf])
    assert (constant.value, constant.gradient) == (0, 1)


def test_a_nan_is_not_lost() -> None:
    values = torch.tensor([1.0, float("nan")])
    assert compare_references.largest([compared("", torch.ones(2), values).value, 0.5]) == "nan"
    assert compare_references.largest([0.5, 2.0, None]) == "2.0e+00"
    assert compare_references.largest([None]) == ""


def test_words_of_the_prompt() -> None:
    aim = targets([Region("red cat"), Region("ball")])
    assert aim.token_indices[0] == ((2, 3), (7,)) and tokenized(PROMPT).ends == (8,)
    assert tokenized("a cat and a cat").ids[2] == tokenized("a cat and a cat").ids[5] == tokenized("cat").ids[1]


# ---------------------------------------------------------------------------------------------------------- the table


def lines(text: str) -> list[list[str]]:
    """Cells of the table's body."""
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line[:1] == "|"][2:]


def fake(method: str = "fake", packages: dict[str, str] | None = None) -> Reference:
    """A reference whose published code is a line in the clone's loss.py."""

    def compare(clone: Path) -> Iterator[Comparison]:
        theirs = load(clone / "loss.py", ["loss"])["loss"]
        values = torch.tensor([1.0, 3.0], requires_grad=True)
        yield compared("squares", theirs(values), values.square().sum(), [values])
        yield compared("sizes", theirs(values.detach()), values.square().sum())

    return Reference(method, "somebody/published-code", compare, packages=packages or {})


def test_one_reference_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compare_references, "REFERENCES", {"fake": fake()})
    clone = tmp_path / "published-code"
    clone.mkdir()
    (clone / "loss.py").write_text("import cv2\ndef loss(values): return 2 * (values ** 2).sum().cuda()\n")
    compare_references.main(["--repos", str(tmp_path)])
    said = capsys.readouterr().out
    assert lines(said) == [["fake", "somebody/published-code", "2", "5.0e-01", "5.0e-01", "ok"]]
    compare_references.main(["--repos", str(tmp_path), "--methods", "fake", "--cases"])
    assert "| fake | sizes | 5.0e-01 |  |" in capsys.readouterr().out


def test_one_method_of_ours_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "make-it-count" / "utils").mkdir(parents=True)
    (tmp_path / "make-it-count" / "utils" / "loss_utils.py").write_text(
        "def object_layout_loss(words, config, places, store):\n"
        "    words = (words - words.min()) / (words.max() - words.min())\n"
        "    inside, outside = words[places > 0], words[places == 0]\n"
        "    losses = config['cross_attn_bce_pos_wt'] * F.softplus(-inside).sum() + F.softplus(outside).sum()\n"
        "    return losses / words.numel()\n"
    )
    compare_references.main(["--repos", str(tmp_path), "--methods", "count_guidance"])
    ((method, _, count, value, gradient, status),) = lines(capsys.readouterr().out)
    assert (method, count, status) == ("count_guidance", "4", "ok")
    assert float(value) < 1e-12 and float(gradient) < 1e-12


def test_masks_that_published_code_writes_into_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A function that rounds upwards and then fails, in the place of layout guidance's, and one that draws as published."""
    clone = tmp_path / "layout-guidance"
    clone.mkdir()
    body = (
        "def compute_ca_loss(middle, up, boxes, words):\n"
        "    for maps in (middle[0], up[0][0]):\n"
        "        side = int(math.sqrt(maps.shape[1]))\n"
        "        mask = torch.zeros(size=(side, side)).cuda()\n"
        "        x0, y0, x1, y1 = (ROUND(edge * side) for edge in boxes[0][0])\n"
        "        mask[y0:y1, x0:x1] = 1\n"
        "    return torch.ones(2)[5]\n"
    )
    counts = []
    for whole in ("math.ceil", "math.floor"):
        (clone / "utils.py").write_text(body.replace("ROUND", whole))
        compare_references.main(["--repos", str(tmp_path), "--masks", "30", "--methods", "layout_guidance", "syngen"])
        ((method, _, boxes, masks, unequal, status),) = lines(capsys.readouterr().out)
        assert (method, boxes, masks, status) == ("layout_guidance", "30", "60", "ok")
        counts.append(int(unequal))
    assert counts[0] > 10 and counts[1] == 0
    compare_references.main(["--repos", str(tmp_path), "--masks", "3"])
    assert [line[0] for line in lines(capsys.readouterr().out)] == [
        "box_diff",
        "layout_guidance",
        "r_and_b",
        "bounded_attention",
        "paint_with_words",
    ]


def test_random_boxes_lie_anywhere_and_some_are_small() -> None:
    boxes = random_boxes(300, seed=0)
    assert boxes == random_boxes(300, seed=0) != random_boxes(300, seed=1)
    assert all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in boxes)
    assert sum(x1 - x0 < 1 / 16 and y1 - y0 < 1 / 16 for x0, y0, x1, y1 in boxes) > 60
    assert sum(all((32 * edge).is_integer() for edge in box) for box in boxes) > 40
    assert all(x0 > 0.5 for x0, *_ in random_boxes(5, 0, lambda box: box[0] > 0.5))


def test_what_is_missing_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, reference in enumerate(REFERENCES.values()):
        if number % 2:
            (tmp_path / reference.folder).mkdir()  # a clone without files
    compare_references.main(["--repos", str(tmp_path)])
    found = lines(capsys.readouterr().out)
    assert [line[0] for line in found] == list(REFERENCES)
    assert all(line[2] == "0" and line[-1].startswith("not found: ") for line in found)
    assert str(tmp_path / "BoxDiff") in found[0][-1] and "utils.py" in found[1][-1]


def test_a_missing_package_and_a_failure_are_lines(tmp_path: Path) -> None:
    clone = tmp_path / "published-code"
    clone.mkdir()
    without = compare_references.outcome(fake(packages={"a_module_that_nobody_has": "nobodys-module"}), tmp_path)
    assert without.status == "not found: the package nobodys-module"
    (clone / "loss.py").write_text("\n\ndef loss(values):\n    raise ValueError('one\\nand two')\n")
    assert compare_references.outcome(fake(), tmp_path).status == "failed: ValueError: one and two (loss.py:4)"
    (clone / "loss.py").write_text("def loss(:\n")
    assert compare_references.outcome(fake(), tmp_path).status.startswith("failed: SyntaxError: ")
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "box_diff", "syn_gen"], r"^--methods: expected names among box_diff, .*; got syn_gen$"),
        (["--masks", "0"], r"^--masks: expected a number of at least 1; got 0$"),
        (["--repos", "gone"], r"^--repos: expected a folder that holds clones; got gone$"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        compare_references.main(["--repos", str(tmp_path), *words])


def test_help_says_where_clones_are_expected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare_references.main(["--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(reference.repository in said and f"DIR/{reference.folder} " in said for reference in REFERENCES.values())
    assert "pytorch-metric-learning" in said and "opencv-python-headless" in said
