"""Settings of a run, on the command line or in YAML, under the headings of the help; commands share them."""

from __future__ import annotations

from typing import Any

from attnguide.cli import values
from attnguide.cli.folders import local_path
from attnguide.cli.values import Setting, under
from attnguide.loggers import LOGGERS
from attnguide.models.names import DEFAULT_MODEL, DTYPE_NAMES, SCHEDULERS, SPACINGS


def run_settings() -> list[Setting]:
    """Settings of ``attnguide sample``; the prompt, which is positional, comes first."""
    return [
        *under("what to draw", _drawn()),
        *under("how to steer", _steered()),
        *under("the model", _loaded()),
        *under("sampling", _sampled()),
        *under("pictures to begin from", _given()),
        *under("what is measured", _measured()),
        *under("the run", _kept()),
    ]


def _more_loggers(word: str) -> bool:
    return word in LOGGERS


def _rows(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(row, dict) for row in value)):
        return value
    raise ValueError(f"expected a file (.yaml, .json, .jsonl, .csv, .txt) or a list of rows; got {value!r}")


def _drawn() -> list[Setting]:
    return [
        Setting("prompt", values.words, None, "what to draw", metavar="PROMPT"),
        Setting(
            "regions",
            values.regions,
            None,
            "place of a phrase of the prompt: PHRASE=x0,y0,x1,y1 as fractions from the top left, PHRASE=mask.png "
            "(white is inside, black outside), or PHRASE alone; PHRASE[1] is its second occurrence; PHRASE=seed:7, "
            "PHRASE=prompt:TEXT, PHRASE=invert:picture.png or PHRASE=noise:picture.png takes the phrase's attention in another "
            "picture (see: attnguide maps); repeatable",
            option="--region",
            metavar="PHRASE=PLACE",
            follows=values.alone,
        ),
        Setting(
            "groups",
            values.groups,
            None,
            "words of the prompt that belong together, the noun last: 'red circle'; repeatable; found by rule otherwise",
            option="--group",
            metavar="WORDS",
            follows=values.alone,
        ),
        Setting("seed", values.seeds, None, "one picture for each: 0 1 2 or 0..7", metavar="N", follows=values.more_seeds),
        Setting(
            "rows",
            _rows,
            None,
            "table of rows (.yaml, .json, .jsonl, .csv), a list of prompts (.txt) or a layout benchmark (7Bench, GenEval, "
            "COCO, GLIGEN, LLM-grounded, LayoutSAM) instead of a prompt; a row has the keys prompt, id, seed, regions, "
            "groups, methods, negative_prompt, prompt_syntax, height, width, steps, cfg_scale, true_cfg_scale, scheduler, "
            "init_image, strength, inpaint_mask, control, tags; a CSV file may have regions in columns obj1, bbox1, obj2, "
            "bbox2, ...; further columns are tags; see docs/tables.md",
            metavar="FILE",
        ),
        Setting(
            "box_size",
            values.box_size,
            None,
            "if the boxes of a table are in pixels: side of the picture they are of, or HEIGHTxWIDTH",
            metavar="PIXELS",
        ),
        Setting(
            "box_format",
            values.box_format,
            None,
            "how a table writes boxes, if not as its kind does: xyxy (corners) or xywh (corner, width, height); fractions, "
            "pixels or permille; or both, as xywh-pixels",
            metavar="FORMAT",
        ),
        Setting("negative_prompt", values.text, None, "text that the unconditional half reads", metavar="TEXT"),
        Setting(
            "prompt_syntax",
            values.syntax,
            "plain",
            "how prompts are read: 'plain', every sign as a letter, or 'weights', as web UIs do: (word:1.3), ((word)), [word], "
            "BREAK, and in as many chunks of 77 tokens as they need; phrases are found in the words alone (Stable Diffusion 1, "
            "2 and XL)",
            metavar="SYNTAX",
        ),
        Setting("height", values.whole(8, 8), None, "height of the pictures in pixels; the model's by default", metavar="N"),
        Setting("width", values.whole(8, 8), None, "width of the pictures in pixels; the model's by default", metavar="N"),
    ]


def _steered() -> list[Setting]:
    return [
        Setting(
            "methods",
            values.methods,
            None,
            "how to steer (see: attnguide methods); repeatable, several work together; --method.OPTION VALUE sets an option of "
            "the method before it; 'plain' for none; forward_layout where regions have places, also in rows of a "
            "table that name no method",
            option="--method",
            metavar="NAME",
            follows=values.alone,
        ),
        Setting("compare", values.flag, False, "make one picture for each method instead of applying them together"),
        Setting("plain", values.flag, True, "leave out the plain twin of each steered picture", option="--no-plain"),
    ]


def _loaded() -> list[Setting]:
    return [
        Setting(
            "model",
            values.words,
            DEFAULT_MODEL,
            "'shapes' or 'shapes-mmdit' (embedded), a folder in diffusers format, a .safetensors file, or a hub id owner/name",
        ),
        Setting(
            "model_config",
            values.words,
            None,
            "for a .safetensors file where the hub is out of reach: a folder in diffusers format with the configuration of "
            "such a model; weights in it are not read",
            metavar="FOLDER",
        ),
        Setting(
            "variant",
            values.words,
            None,
            "variant of the model's weights, such as fp16, for a folder or a hub id; found by itself where there is only one",
            metavar="NAME",
        ),
        Setting(
            "lora",
            values.loras,
            None,
            "low-rank addition to the model's weights and its factor, 1 by default: a .safetensors file, a folder with one, or "
            "a hub id; repeatable",
            metavar="PATH[:WEIGHT]",
            follows=values.alone,
        ),
        Setting(
            "controlnet",
            values.controlnets,
            None,
            "ControlNet that reads the control pictures of a type, or of every type that has no other: a folder in diffusers "
            "format, or a hub id; repeatable",
            metavar="[TYPE=]PATH",
            follows=values.alone,
        ),
        Setting("device", values.device, None, "cpu, cuda, cuda:N, mps; the best there is by default"),
        Setting("dtype", values.dtype, None, f"{', '.join(DTYPE_NAMES)}, or as torch calls them; fp16 on a GPU, else fp32"),
        Setting(
            "offload",
            values.offload,
            "none",
            "what waits in the CPU's memory while a GPU does not need it: none, model (networks that do not run), group (all "
            "blocks but one), sequential (all modules but one)",
        ),
        Setting(
            "checkpointing",
            values.flag,
            False,
            "compute activations anew in the backward pass of guided steps, which takes less memory and a forward more",
        ),
    ]


def _sampled() -> list[Setting]:
    return [
        Setting(
            "scheduler",
            values.scheduler,
            None,
            f"{', '.join(SCHEDULERS)}, most of them also with {', '.join('_' + ending for ending in SPACINGS)} behind, or as "
            "web UIs spell them ('DPM++ 2M Karras'); the model's own by default",
            metavar="NAME",
        ),
        Setting("steps", values.whole(1), 30, "denoising steps", metavar="N"),
        Setting("cfg_scale", values.number, 5.0, "classifier-free guidance weight; 1 or less switches it off", metavar="X"),
        Setting(
            "true_cfg_scale",
            values.number,
            1.0,
            "for models that read cfg_scale as a condition (FLUX.1-dev): above 1, with a negative prompt, computes both halves "
            "and combines them with this weight",
            metavar="X",
        ),
        Setting(
            "batch_size",
            values.whole(1),
            None,
            "most rows sampled together; 8, or up to 16 of small pictures, by default",
            metavar="N",
        ),
    ]


def _given() -> list[Setting]:
    return [
        Setting(
            "init_image",
            values.picture,
            None,
            "picture to begin from instead of noise alone (img2img), stretched to the size of the picture that is made",
            metavar="FILE",
        ),
        Setting(
            "strength",
            values.share,
            None,
            "how much of the schedule an --init-image runs through: above 0, at most 1; 0.8, or 1 with an --inpaint-mask",
            metavar="X",
        ),
        Setting(
            "inpaint_mask",
            values.picture,
            None,
            "where an --init-image is drawn anew: a picture of its size, white there and black where it is kept",
            metavar="FILE",
        ),
        Setting(
            "control",
            values.controls,
            None,
            "picture that a ControlNet reads (edges, depths, ...), and the factor on what it adds, 1 by default; repeatable, "
            "with another TYPE each",
            metavar="TYPE=IMAGE[:SCALE]",
            follows=values.more_controls,
        ),
    ]


def _measured() -> list[Setting]:
    return [
        Setting(
            "judge",
            values.judges,
            None,
            "who looks at the pictures: shapes (the embedded world; the default), patches (its colours alone, whatever the "
            "shape), detector=MODEL (OWLv2, Grounding DINO, ...), "
            "clip=MODEL, vqa=MODEL (a folder or a hub id each), module:Class of your own, or none; repeatable; "
            "--judge.OPTION VALUE sets an option of the judge before it (detector: threshold, nms)",
            metavar="NAME",
            follows=values.alone,
        ),
        Setting("maps", values.flag, True, "draw no heat maps", option="--no-maps"),
        Setting("norms", values.flag, True, "measure no norms of attention maps", option="--no-norms"),
        Setting("values", values.flag, False, "report how much attention values change over steps, seeds and methods"),
    ]


def _kept() -> list[Setting]:
    return [
        Setting("out", local_path, None, "folder of the run; runs/<date and time> by default", metavar="DIR"),
        Setting(
            "resume",
            values.flag,
            False,
            "go on with the run in --out, whose settings need not be repeated; rows that are complete are kept",
        ),
        Setting(
            "strict",
            values.flag,
            False,
            "refuse a table with a row that its method cannot take; by default such a row ends alone, with the reason",
        ),
        Setting(
            "logger",
            values.loggers,
            values.default_loggers(),
            f"loggers of the run, any of {', '.join(LOGGERS)}",
            metavar="NAME",
            follows=_more_loggers,
        ),
        Setting(
            "row_curves",
            values.whole(0),
            0,
            "rows, from the first, whose own curves go to the loggers beside the means by method",
            metavar="N",
        ),
        Setting("wandb", values.wandb, {}, "--wandb.project, --wandb.name, --wandb.group, --wandb.tags", metavar="KEYS"),
        Setting("trainer", values.mapping, {}, "arguments of Lightning's Trainer: --trainer.devices 4", metavar="KEYS"),
        Setting(
            "made_with",
            values.mapping,
            {},
            "what config.yaml keeps of its run: versions, the model, defaults of methods (which are used, should they have "
            "changed since)",
            metavar="KEYS",
        ),
    ]
