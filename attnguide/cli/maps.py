"""``attnguide maps``: writes words' attention maps as files that can be painted on and used as regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.cli import values
from attnguide.cli.arguments import parse
from attnguide.cli.errors import RunError, UsageError, one_line, reason
from attnguide.cli.folders import filling, local_path, probe, timed
from attnguide.cli.settings import run_settings
from attnguide.cli.values import Setting, under
from attnguide.text.fields import MOST_SEED
from attnguide.types import MapSource, Region, Sample
from attnguide.weighted import words_of

if TYPE_CHECKING:
    from PIL import Image

    from attnguide.models.base import ModelAdapter
    from attnguide.sampling.source_pictures import SourcePicture

DESCRIPTION = """\
Record where words look while a picture is made of a prompt, or while a picture of yours is inverted or noised. Each word gets a
grey picture, to look at and to paint on, and the numbers as .npy; either can be the place of a region."""

EXAMPLES = """\
examples:
  attnguide maps "a red circle and a blue square" --word "red circle" --word "blue square" --seed 3 --out maps
  attnguide maps "a red circle and a blue square" --image drawing.png --by invert --out maps
  attnguide sample "a red circle and a blue square" --region "red circle=maps/red_circle.png" """.rstrip()

READERS = ("attention", "concept_attention")
"""Ways to read maps: cross-attention probs, or ConceptAttention's inner products of attention outputs."""

_SHARED = (
    *("model", "model_config", "variant", "device", "dtype", "offload", "checkpointing", "lora"),
    *("scheduler", "steps", "negative_prompt", "true_cfg_scale", "prompt_syntax", "height", "width"),
)


def _way(value: Any) -> str:
    if value in ("invert", "noise"):
        return str(value)
    raise ValueError(f"expected invert or noise; got {value!r}")


def _reader(value: Any) -> str:
    if value in READERS:
        return str(value)
    raise ValueError(f"expected {' or '.join(READERS)}; got {value!r}")


def _phrases(value: Any) -> list[str]:
    return [values.words(item) for item in (value if isinstance(value, list | tuple) else [value])]


def settings() -> list[Setting]:
    """Settings of ``attnguide maps``."""
    shared = {setting.name: setting for setting in run_settings()}
    return [
        shared["prompt"],
        *under("maps and their picture", _mapped()),
        *(shared[name] for name in _SHARED),
        *under("the run", [_out()]),
    ]


def _out() -> Setting:
    return Setting("out", local_path, None, "new folder for the maps; maps/<date and time> by default", metavar="DIR")


def _mapped() -> list[Setting]:
    return [
        Setting(
            "words",
            _phrases,
            None,
            "phrase of the prompt whose map is wanted; PHRASE[1] is its second occurrence; repeatable; every word by default",
            option="--word",
            metavar="PHRASE",
            follows=values.alone,
        ),
        Setting("seed", values.whole(0, most=MOST_SEED), 0, "seed of the picture's noise", metavar="N"),
        Setting("image", values.words, None, "a picture of yours instead of a sampled one", metavar="FILE"),
        Setting(
            "by",
            _way,
            "invert",
            "how the picture gets noisy: 'invert' walks the sampler backwards and forth again, 'noise' adds noise",
            metavar="WAY",
        ),
        Setting(
            "reader",
            _reader,
            "attention",
            "what maps are: 'attention' to the prompt's words, or 'concept_attention' (arXiv 2502.04320; FLUX.1 and Stable "
            "Diffusion 3): shares of every --word, a single one each, in the prompt or not; by default its content words",
            metavar="READER",
        ),
        Setting("iterations", values.whole(0), 0, "fixed-point iterations of an inversion, for each step", metavar="N"),
        Setting("start", values.number, 0.0, "share of the schedule from which on maps count, from 0", metavar="X"),
        Setting("stop", values.number, 1.0, "share of the schedule up to which maps count, at most 1", metavar="X"),
        Setting("threshold", values.number, None, "make cells of at least this share of the range 1, others 0", metavar="X"),
        Setting("cfg_scale", values.number, None, "classifier-free guidance weight; 5, or 1 for an inversion", metavar="X"),
    ]


def run(argv: Sequence[str]) -> int:
    """Run the command; see :func:`attnguide.cli.main` for the status."""
    asked = parse("attnguide maps", argv, settings(), description=DESCRIPTION, examples=EXAMPLES)
    row, source, folder = _planned(asked)
    from attnguide.cli.opening import loaded, quiet

    print(f"loading model {asked['model']} ...", flush=True)
    quiet()
    model = loaded(asked)
    _check(model, row if asked["reader"] == "attention" else replace(row, regions=()))
    try:
        picture = (_made if asked["reader"] == "attention" else _shares)(model, row, source)
        with filling(folder) as temporary:
            peaks = _write(temporary, asked, row, source, picture)
    except UsageError:
        raise
    except Exception as error:
        raise RunError(f"no maps were written: {reason(error)}") from error
    print(_told(folder, peaks, picture))
    return 0


# ---------------------------------------------------------------------------------------------------------- what is asked


def _planned(asked: Mapping[str, Any]) -> tuple[Sample, MapSource, Path]:
    """The row whose maps are recorded, with its words as regions, the source of the maps, and the output folder.

    Raises:
        UsageError: If a setting is missing or invalid.
    """
    if asked["prompt"] is None:
        raise UsageError("prompt: expected the prompt whose words' maps are wanted; got none")
    folder = Path(asked["out"] or Path("maps") / timed())
    probe(folder, "x" * 80)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"out: expected a new or empty folder; '{folder}' is neither")
    source = _source(asked)
    cfg_scale = source.cfg_scale if source.kind == "invert" else asked["cfg_scale"]
    try:
        words = _words(asked, source)
        row = Sample(
            id="maps",
            prompt=asked["prompt"],
            seed=asked["seed"],
            regions=words,
            negative_prompt=asked["negative_prompt"],
            prompt_syntax=asked["prompt_syntax"],
            height=asked["height"],
            width=asked["width"],
            steps=asked["steps"],
            cfg_scale=5.0 if cfg_scale is None else cfg_scale,
            true_cfg_scale=asked["true_cfg_scale"],
            scheduler=asked["scheduler"],
        )
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    return row, source, folder


def _words(asked: Mapping[str, Any], source: MapSource) -> tuple[Region, ...]:
    """The words whose maps are recorded, as regions without a place.

    Raises:
        ValueError: If a word is not in the prompt, has a place, or does not suit the reader.
    """
    from attnguide.prompt.notation import parse_region
    from attnguide.prompt.regions import prompt_words

    attention, text = asked["reader"] == "attention", words_of(asked["prompt"], asked["prompt_syntax"])
    words = tuple(map(parse_region, asked["words"] or ())) or prompt_words(text)
    if not attention and not asked["words"]:
        words = _concepts(words)
    if not words:
        raise ValueError(f"prompt: expected a word; got {asked['prompt']!r}")
    for word in words:
        if word.has_place:
            raise ValueError(f"a word takes no place here; got one for {word.phrase!r}")
    (_check_words if attention else _check_concepts)(words, source, text)
    return words


def _check_words(words: Sequence[Region], source: MapSource, prompt: str) -> None:
    from attnguide.prompt.regions import check_region

    for word in words:
        try:
            check_region(word, prompt)
        except ValueError as error:
            raise ValueError(f"word: {error}") from error
    if source.image is not None:
        check_region(Region(words[0].phrase, source=source, occurrence=words[0].occurrence), prompt)


def _concepts(words: Sequence[Region]) -> tuple[Region, ...]:
    """The content words among ``words``, each once."""
    from attnguide.prompt.function_words import FUNCTION_WORDS

    first = {word.phrase.lower(): word for word in reversed(words) if word.phrase.lower() not in FUNCTION_WORDS}
    return tuple(word for word in words if word in first.values())


def _check_concepts(words: Sequence[Region], source: MapSource, prompt: str) -> None:
    from attnguide.figures.concepts import checked_concepts

    if source.image is not None:
        raise ValueError("reader: concept_attention reads pictures that are sampled, none of yours; leave out --image")
    try:
        checked_concepts([word.phrase for word in words])
    except ValueError as error:
        raise ValueError(f"word: {error}") from error


def _source(asked: Mapping[str, Any]) -> MapSource:
    if asked["image"] is None and asked["by"] == "noise":
        raise UsageError("by: expected --image with the picture that is noised; got none")
    if asked["iterations"] and (asked["image"] is None or asked["by"] != "invert"):
        raise UsageError("iterations: expected --image with a picture to invert, whose iterations they are; got none")
    common = {name: asked[name] for name in ("seed", "start", "stop", "threshold", "iterations")}
    try:
        if asked["image"] is None:
            return MapSource("seed", **common)
        cfg_scale = 1.0 if asked["cfg_scale"] is None else asked["cfg_scale"]
        return MapSource(asked["by"], image=Path(asked["image"]).expanduser(), cfg_scale=cfg_scale, **common)
    except ValueError as error:
        raise UsageError(str(error).removeprefix("source ")) from error


# --------------------------------------------------------------------------------------------------------------- the maps


def _check(model: ModelAdapter, row: Sample) -> None:
    """Check the row against the loaded model: length of the prompt, number of steps, size of the picture.

    Raises:
        UsageError: If the model cannot make the row.
    """
    from attnguide.sampling.check import sampleable

    try:
        sampleable(model, [row], strict=True)
        shape = model.latent_shape(row.height or model.default_size[0], row.width or model.default_size[1])
        model.make_scheduler(row.scheduler, row.steps, shape)
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _made(model: ModelAdapter, row: Sample, source: MapSource) -> SourcePicture:
    from attnguide.sampling.source_pictures import record_pictures

    try:
        (picture,) = record_pictures(model, [row], source, [source.image])
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    return picture


def _shares(model: ModelAdapter, row: Sample, source: MapSource) -> SourcePicture:
    """The row's picture with ConceptAttention's map of each word, as the mean over the steps in ``[start, stop)``."""
    import torch

    from attnguide.figures.concepts import ConceptAttention
    from attnguide.sampling.sampler import Sampler
    from attnguide.sampling.source_pictures import SourcePicture

    concepts = [region.phrase for region in row.regions]
    try:
        reader = ConceptAttention(concepts, steps=(source.start, source.stop))
        (result,) = Sampler(model, observer=reader).run([replace(row, regions=())])
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    if result.image is None:
        raise ValueError(f"the picture could not be made: {result.status}")
    if not reader[0].maps:
        raise UsageError(f"start: no step of {row.steps} lies between {source.start:g} and {source.stop:g}")
    maps = torch.stack([torch.from_numpy(reader[0].maps[concept]) for concept in concepts])
    return SourcePicture(maps[:, None], (source.start,), result.cost.unet_forwards, result)


def _write(folder: Path, asked: Mapping[str, Any], row: Sample, source: MapSource, picture: SourcePicture) -> dict[str, float]:
    """Write maps, pictures and ``_maps.yaml`` into the folder.

    Returns:
        File name without suffix -> maximum of the word's mean map, before it is scaled to a picture.
    """
    from attnguide.callbacks.attention_maps import enlarged
    from attnguide.sampling.source_pictures import mask_of
    from attnguide.sheets.grid import contact_sheet
    from attnguide.sheets.overlays import heat_map
    from attnguide.sources.files import map_bytes, map_names, map_picture
    from attnguide.text.yaml12 import dump_yaml

    shown = enlarged(_shown(source, picture))
    peaks: dict[str, float] = {}
    heats = []
    for index, name in enumerate(map_names(row.regions)):
        mask, maps = mask_of(picture, index, source), picture.maps[index]
        map_picture(mask).save(folder / f"{name}.png")
        (folder / f"{name}.npy").write_bytes(map_bytes(mask))
        (folder / f"{name}-steps.npy").write_bytes(map_bytes(maps))
        peaks[name] = float(maps.mean(0).max())
        heats.append(heat_map(shown, mask.numpy()))
    _shown(source, picture).save(folder / "_picture.png")
    labels = ["picture", *(region.phrase for region in row.regions)]
    contact_sheet([[shown, *heats]], column_labels=labels).save(folder / "_overview.png")
    kept = {name: value for name, value in asked.items() if name != "out" and value is not None}
    (folder / "_maps.yaml").write_text(
        dump_yaml({**kept, "measured": dict(picture.measured), "peaks": peaks}),
        encoding="utf-8",
    )
    return peaks


def _shown(source: MapSource, picture: SourcePicture) -> Image.Image:
    """The sampled or reconstructed picture; the user's own if it was only noised."""
    if picture.result is not None and picture.result.image is not None:
        return picture.result.image
    from attnguide.prompt.inputs import in_rgb
    from attnguide.prompt.masks import open_picture

    assert source.image is not None
    return in_rgb(open_picture(source.image))


def _told(folder: Path, peaks: Mapping[str, float], picture: SourcePicture) -> str:
    width = max(map(len, peaks))
    lines = [f"{folder / name}.png{' ' * (width - len(name))}  peak of attention {peak:.3f}" for name, peak in peaks.items()]
    if picture.measured:
        told = "reconstruction: PSNR {reconstruction_psnr:.1f} dB, mean squared error {reconstruction_mse:.3g}"
        lines.append(told.format(**picture.measured))
    lines.append(f'{folder / "_overview.png"}  all of them over the picture; paint on a .png, then --region "PHRASE=FILE"')
    return "\n".join(lines)
