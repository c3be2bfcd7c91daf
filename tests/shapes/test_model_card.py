"""The snippets of the embedded models' cards, run as they are written, and what every card's model must be."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.models.folder import is_distilled
from attnguide.models.identity import model_fingerprint
from attnguide.models.load import adapt, load_model
from attnguide.models.names import EMBEDDED
from attnguide.sampling.sampler import Sampler
from attnguide.types import Sample


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_snippet_of_the_model_card_runs_as_written(name: str) -> None:
    text = (EMBEDDED[name] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["picture"].size == (128, 128) and np.asarray(names["picture"]).std() > 10
    row = Sample("0", "a red circle", steps=2)
    models = (adapt(names["pipeline"]), load_model(name, device="cpu"))
    held, named = (Sampler(model).run([row])[0].latents for model in models)
    assert held is not None and named is not None and torch.equal(held, named)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_is_small_safe_and_told_from_others(name: str) -> None:
    files = [path for path in EMBEDDED[name].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md"}
    assert sum(path.stat().st_size for path in files) < 25e6
    assert all(str(Path.home()).encode() not in path.read_bytes() for path in files)
    others = {model_fingerprint(other) for other in EMBEDDED if other != name}
    assert model_fingerprint(name) is not None and model_fingerprint(name) not in others
    assert is_distilled(name) is (name == "shapes-mmdit")
