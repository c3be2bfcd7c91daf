"""A model is known again by its files."""

import shutil
from pathlib import Path

from attnguide.models.identity import model_fingerprint


def test_changed_weights_and_settings_are_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    weights = folder / "unet" / "weights.safetensors"
    weights.write_bytes(bytes(3_000_000))
    found = [model_fingerprint(str(folder))]
    assert model_fingerprint(str(shutil.copytree(folder, tmp_path / "b"))) == found[0], "wherever it lies"
    (folder / "README.md").write_text("of no effect")
    assert model_fingerprint(str(folder)) == found[0]
    (folder / "unet" / "config.json").write_text('{"sample_size": 8}')
    found.append(model_fingerprint(str(folder)))
    weights.write_bytes(bytes(2_999_999) + b"1")
    found.append(model_fingerprint(str(folder)))
    found.append(model_fingerprint(str(weights)))
    found.append(model_fingerprint(str(weights), str(folder)))
    assert len(set(found)) == 5 and None not in found


def test_the_embedded_model_and_what_is_not_there() -> None:
    assert model_fingerprint("shapes") == model_fingerprint("shapes") is not None
    assert model_fingerprint("nobody/nothing") is None and model_fingerprint("a name that is no id") is None
