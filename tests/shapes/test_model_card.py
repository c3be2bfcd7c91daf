"""The snippet of the embedded model's card, run as it is written."""

import re
from typing import Any

import numpy as np
import torch

from attnguide.models.load import adapt, load_model, shapes_folder
from attnguide.sampling.sampler import Sampler
from attnguide.types import Sample


def test_the_snippet_of_the_model_card_runs_as_written() -> None:
    text = (shapes_folder() / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["picture"].size == (128, 128) and np.asarray(names["picture"]).std() > 10
    row = Sample("0", "a red circle", steps=2)
    held, named = (Sampler(model).run([row])[0].latents for model in (adapt(names["pipeline"]), load_model(device="cpu")))
    assert held is not None and named is not None and torch.equal(held, named)
