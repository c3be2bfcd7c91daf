"""Wrong inputs by kind, through the real command line: one line that names the mistake, status 2, and nothing written."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from attnguide.cli import main
from tests import tiny

SURROGATE = "a \ud800 cat"
LONG = "x" * 300
DEEP = "x/" * 3000

# ------------------------------------------------------------------------------------------------------------- the files


def _png() -> bytes:
    """A picture that says it is 60,000 pixels a side, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def _npy(shape: str, content: bytes = b"") -> bytes:
    """An array file whose header says what it likes."""
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def _ablation(**parts: object) -> str:
    whole = {"base": {"prompt": "a cat", "steps": 1}, "parameters": {"cfg_scale": {"values": [1, 2]}}}
    return yaml.safe_dump({**whole, **parts})


_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CONTENT: dict[str, str | bytes] = {
    # of any kind
    "empty": "",
    "nul.yaml": "prompt: a\0cat\n",
    "latin.yaml": "prompt: café\n".encode("latin-1"),
    "utf16.yaml": "prompt: [a cat\n".encode("utf-16"),
    "binary.yaml": bytes(range(256)),
    "deep.yaml": "prompt: " + "[" * 1500 + "]" * 1500 + "\n",
    "deepmap.yaml": "trainer: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "bomb.yaml": _BOMB,
    "bombkey.yaml": _BOMB.replace("a0:", "trainer:\n a0:").replace("\na", "\n a"),
    "loop.yaml": "trainer: &a\n  b: *a\n",
    "merge.yaml": "trainer: &a\n  <<: *a\n",
    "tag.yaml": "prompt: !!python/object/apply:os.getcwd []\n",
    "list.yaml": "- 1\n",
    "scalar.yaml": "only words\n",
    "twice.yaml": "steps: 1\nsteps: 2\n",
    "numberkey.yaml": "1: 2\n",
    "listkey.yaml": "? [a, b]\n: 2\n",
    "tab.yaml": "prompt:\n\tx: 1\n",
    "two.yaml": "prompt: a cat\n---\nprompt: a dog\n",
    "anchor.yaml": "prompt: *nothing\n",
    # values of the wrong type
    "date.yaml": "prompt: a cat\nsteps: 2026-01-01\n",
    "set.yaml": "prompt: a cat\ntrainer: !!set {a, b}\n",
    "bytes.yaml": "prompt: !!binary aGVsbG8=\n",
    "mapping.yaml": "prompt: {a: cat}\n",
    "null.yaml": "prompt: a cat\nsteps: [null]\n",
    "big.yaml": f"prompt: a cat\nseed: {'9' * 5000}\n",
    "steps.yaml": f"prompt: a cat\nsteps: {'9' * 400}\n",
    "inf.yaml": "prompt: a cat\ncfg_scale: .inf\n",
    "bool.yaml": "prompt: a cat\nseed: true\n",
    "resume.yaml": "prompt: a cat\nmaps: 3\n",
    "method.yaml": "prompt: a cat\nmethods: [{name: [mask_guidance]}]\n",
    "regions.yaml": "prompt: a cat\nregions: [{phrase: cat, box: {a: 1}}]\n",
    "wandb.yaml": "prompt: a cat\nwandb: {tags: {a: 1}}\n",
    # tables
    "empty.csv": "",
    "head.csv": "prompt,seed\n",
    "latin.csv": "prompt\ncafé\n".encode("latin-1"),
    "wide.csv": "prompt,seed\na cat,1,2\n",
    "quote.csv": 'prompt\n"a cat\n',
    "seed.csv": f"prompt,seed\na cat,{'9' * 5000}\n",
    "minus.csv": "prompt,seed\na cat,-1\n",
    "steps.csv": "prompt,steps\na cat,0\n",
    "cfg.csv": "prompt,cfg_scale\na cat,nan\n",
    "regions.csv": 'prompt,regions\na cat,"[["\n',
    "regions2.csv": 'prompt,regions\na cat,"{""cat"": 3}"\n',
    "nested.csv": f"prompt,regions\na cat,{'[' * 5000}\n",
    "tags.csv": "prompt,tags\na cat,3\n",
    "box.csv": 'prompt,obj1,bbox1\na cat,cat,"0,0,1"\n',
    "field.csv": f"prompt,seed\na cat,1\n{'x' * 200_000},x\n",
    "id.csv": "id,prompt\n../x,a cat\n",
    "ids.csv": "id,prompt\na,a cat\nA,a cat\n",
    "method.csv": "prompt,method\na cat,none_such\n",
    "rows.jsonl": "3\n",
    "deep.jsonl": "[" * 100_000 + "\n",
    "text.jsonl": '{"prompt": 3}\n',
    "surrogate.jsonl": '{"prompt": "a \\ud800 cat"}\n',
    "nul.csv": b"prompt\na\0cat\n",
    "nul.jsonl": '{"prompt": "a \\u0000 cat"}\n',
    "nan.jsonl": '{"prompt": "a cat", "cfg_scale": NaN}\n',
    "big.jsonl": '{"prompt": "a cat", "seed": ' + "9" * 5000 + "}\n",
    "rows.yaml": "samples: 3\n",
    "rows2.yaml": "- prompt: a cat\n  regions: 3\n",
    "rows3.yaml": "- 2026-01-01\n",
    # places
    "text.png": "no picture\n",
    "empty.png": "",
    "huge.png": _png(),
    "lies.npy": _npy("(100000, 100000)", b"\0" * 64),
    "negative.npy": _npy("(-1, 4)"),
    "objects.npy": _npy("(1, 1)").replace(b"<f8", b"|O "),
    "nan.npy": _npy("(1, 2)", np.array([np.nan, 1]).tobytes()),
    "four.npy": _npy("(1, 1, 1, 1)", b"\0" * 8),
    "empty.npy": "",
    "cut.npy": b"\x93NUMPY",
    # ablations
    "good.yaml": _ablation(),
    "axes.yaml": _ablation(parameters=3),
    "values.yaml": _ablation(parameters={"cfg_scale": {"values": []}}),
    "valuetype.yaml": _ablation(parameters={"cfg_scale": {"values": [{"a": 1}]}}),
    "unknown.yaml": _ablation(parameters={"cfg_scal": {"values": [1]}}),
    "nobase.yaml": _ablation(base=[1]),
    "noaxis.yaml": "base: {prompt: a cat}\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    work = tmp_path_factory.mktemp("wrong")
    for name, content in CONTENT.items():
        (work / name).write_bytes(content.encode() if isinstance(content, str) else content)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    picture.save(work / "whole.png")
    (work / "cut.png").write_bytes((work / "whole.png").read_bytes()[:2000])
    for name in ("folder", "folder.csv", "folder.yaml", "folder.png", "folder.npy"):
        (work / name).mkdir()
    for name in ("fifo.csv", "fifo.yaml", "fifo.png"):
        os.mkfifo(work / name)
    (work / "lost").symlink_to("/nowhere/at/all")
    (work / "loop").symlink_to("loop")
    (work / "loop.csv").symlink_to("loop.csv")
    for name in ("held", "damaged", "doubled"):
        (work / name).mkdir()
    (work / "held" / "records.csv").write_text("id,status\na,ok\n")
    (work / "damaged" / "records.csv").write_bytes(b"id,status\n\xff,ok\n")
    (work / "doubled" / "records.csv").write_text("a,b\n1,2\n")
    yield work


# ------------------------------------------------------------------------------------------------------------- the kinds

Words = list[str]
TABLES = [name for name in CONTENT if name.endswith((".csv", ".jsonl")) or name.startswith("rows")]
OUTPUTS = [
    "empty",
    "empty/run",
    "lost",
    "lost/run",
    "loop",
    LONG,
    DEEP,
    "/proc/run",
    "/dev/null",
    "s3://bucket/run",
    "a::b",
    " ",
    "",
]
CONFIGS = [
    name
    for name in CONTENT
    if name.endswith(".yaml")
    and not name.startswith("rows")
    and not CONTENT[name] == CONTENT["good.yaml"]
    and "base" not in str(CONTENT[name])
]
PLACES = [name for name in CONTENT if name.endswith((".png", ".npy"))]
ABLATIONS = ["axes.yaml", "values.yaml", "valuetype.yaml", "unknown.yaml", "nobase.yaml", "noaxis.yaml"]

KINDS: dict[str, list[Words]] = {
    "output folder": [[command, "a cat", "--out", out] for command in ("sample", "maps") for out in OUTPUTS]
    + [["ablate", "good.yaml", "--out", out] for out in OUTPUTS]
    + [["report", "held", "--out", out] for out in (*OUTPUTS, "held", "held/records.csv", "whole.png")],
    "configuration": [["sample", "--config", name] for name in CONFIGS]
    + [["sample", "--config", name] for name in ("folder", "fifo.yaml", "lost", "loop", LONG, "empty/x", "gone.yaml")],
    "configuration of maps": [
        ["maps", "--config", name] for name in ("deep.yaml", "bomb.yaml", "latin.yaml", "date.yaml", "tag.yaml")
    ],
    "table": [["sample", "--rows", name] for name in TABLES]
    + [
        ["sample", "--rows", name]
        for name in ("folder.csv", "folder.yaml", "fifo.csv", "loop.csv", "gone.csv", "lost", f"{LONG}.csv")
    ],
    "place": [
        ["sample", "a cat", "--region", f"cat={name}"] for name in (*PLACES, "cut.png", "folder.png", "folder.npy", "fifo.png")
    ]
    + [
        ["sample", "a cat", "--region", f"cat={place}"]
        for place in (f"{LONG}.png", "0,0,1e999,1", "0,0,0,0", "1,1,0,0", "seed:-1")
    ]
    + [["sample", "a cat", "--region", "cat=invert:text.png"], ["maps", "a cat", "--image", "cut.png"]],
    "picture": [
        ["maps", "a cat", "--image", name]
        for name in ("text.png", "empty.png", "huge.png", "folder", "gone.png", "fifo.png", LONG)
    ],
    "ablation": [
        ["ablate", name] for name in (*ABLATIONS, "deep.yaml", "bomb.yaml", "latin.yaml", "empty", "folder", "gone.yaml", LONG)
    ]
    + [["ablate"], ["ablate", "good.yaml", "--cfg_scale", "7"], ["ablate", "good.yaml", "--layouts", "gone.csv"]],
    "run to report": [
        ["report", name] for name in ("gone", "folder", "empty", "damaged", "doubled", "lost", LONG, DEEP, "/dev/null")
    ]
    + [["report"], ["report", "held", "--limit", "-1"], ["report", "held", "--limit", "x"]],
    "number": [
        ["sample", "a cat", option, value]
        for option in ("--steps", "--seed", "--height", "--cfg-scale", "--batch-size")
        for value in ("-1", "nan", "x", "1e999", "9" * 5000, "0x10", "1:30", "")
        if (option, value) not in (("--cfg-scale", "-1"), ("--cfg-scale", "9" * 5000))
    ],
    "text": [
        *([command, SURROGATE] for command in ("sample", "maps", "ablate", "report", "methods", "models")),
        *([command, "a\0b"] for command in ("sample", "maps", "ablate", "report", "methods", "models")),
        ["sample", ""],
        ["sample", " \t"],
        ["maps", ""],
        ["sample", "a cat", "--region", f"{SURROGATE}=0,0,1,1"],
        ["sample", "a cat", "--negative-prompt", SURROGATE],
        ["sample", "a cat", "--negative-prompt=a\0b"],
    ],
    "name": [
        ["smaple"],
        ["\n"],
        ["methods", "none_such"],
        ["methods", LONG],
        ["methods", "a", "b"],
        ["models", "x"],
        ["models", "--config", "deep.yaml"],
        *([command, "x", "--none-such", "1"] for command in ("sample", "maps", "report", "methods", "models")),
        ["ablate", "good.yaml", "--none-such", "1"],
        ["sample", "a cat", "--method", LONG],
        ["sample", "a cat", "--method", "INJECT7"],
        ["sample", "a cat", "--logger", "none", "csv"],
        ["sample", "a cat", "--scheduler", "\x1b[31m"],
    ],
    "model": [
        ["sample", "a cat", "--model", name]
        for name in ("gone", "folder", "empty", "whole.png", LONG, DEEP, "/dev/null", "lost")
    ],
}
CASES = [(kind, words) for kind, several in KINDS.items() for words in several]


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and the time of its last change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        at = path.lstat()
        found[str(path.relative_to(folder))] = (at.st_size, at.st_mtime_ns if path.is_file() else 0)
    return found


def _name(value: object) -> str:
    text = value if isinstance(value, str) else " ".join(value) if isinstance(value, list) else ""
    return ascii(text[:60])


@pytest.mark.parametrize(("kind", "words"), CASES, ids=_name)
def test_one_line_and_nothing_written(
    kind: str, words: Words, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    if kind != "model":
        monkeypatch.setattr("attnguide.models.load.load_model", _no_model)
    before = _tree(folder)
    status = main(words)
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert status == 2, said.err
    assert len(said.err) < 1200 and "internal error" not in said.err
    assert _tree(folder) == before


@pytest.mark.parametrize("command", ["sample", "ablate", "maps", "report", "methods", "models"])
def test_a_current_folder_that_was_removed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main([command, "a cat"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: the current folder is gone") and said.err.count("\n") == 1


def _no_model(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 120 and len({json.dumps(words) for _, words in CASES}) == len(CASES)
    assert {words[0] for _, words in CASES} >= {"sample", "ablate", "maps", "report", "methods", "models"}


def test_a_model_that_ends_in_memory_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.chdir(folder)
    monkeypatch.setattr("attnguide.models.load.load_model", load)
    before = _tree(folder)
    assert main(["sample", tiny.PROMPT]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: out of memory") and said.err.count("\n") == 1 and _tree(folder) == before
