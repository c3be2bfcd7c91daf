"""Arguments of the training command, their defaults by device, and their checks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from attnguide.shapes.training.pace import DECAY

ON_A_CPU = {
    **{"batch_size": 32, "precision": "32-true", "compile": False},
    **{"scenes": 60_000, "preview_every": 1000, "workers": 0, "size": "small"},
}
ON_A_CARD = {
    **{"batch_size": 512, "precision": "bf16-mixed", "compile": True},
    **{"scenes": 200_000, "preview_every": 2000, "workers": os.cpu_count() or 1, "size": "large"},
}
"""Defaults of arguments, by device."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, with defaults by device; one line of error and an exit for values that cannot be."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no graphics card here; leave the option out to train on the CPU.")
    for name, value in (ON_A_CARD if args.device == "cuda" else ON_A_CPU).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    _check_time(parser, args)
    _check_amounts(parser, args)
    return args


def _check_time(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes must be above 0; got {args.minutes:g}.")
    if args.finish is not None and args.minutes is None:
        parser.error("--finish needs --minutes; a training that counts steps finishes by itself.")
    if args.finish is not None and not 0 < args.finish <= 1:
        parser.error(f"--finish must be above 0 and at most 1; got {args.finish}.")


def _check_amounts(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("scenes", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; got {getattr(args, name)}.")
    if args.processes < 1 or (args.device == "cuda" and args.processes > 1):
        parser.error(f"--processes must be 1 or more, and 1 with --device cuda; got {args.processes}.")
    if args.start_from is not None and not args.start_from.is_dir():
        parser.error(f"--start-from must be a folder that exists; got {args.start_from}.")


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command line; ``None`` stands for a default by device."""
    parser = argparse.ArgumentParser(description="Train the embedded models.")
    parser.add_argument("--stage", choices=("all", "autoencoder", "scenes", "diffusion", "mmdit", "export"), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="checkpoints, prepared scenes, logs, pipelines")
    parser.add_argument("--export", type=Path, default=None, help="where pipeline and pipeline-mmdit go (default: OUT)")
    parser.add_argument(
        "--start-from",
        type=Path,
        default=None,
        help="pipeline folder whose weights a new training begins from; its autoencoder stays; of the UNet model's the mmdit "
        "takes autoencoder and CLIP alone",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=None, help="end the command after so long, instead of after the steps")
    parser.add_argument(
        "--finish",
        type=float,
        nargs="?",
        const=DECAY,
        default=None,
        metavar="SHARE",
        help=f"let the learning rate fall to 0 over the last SHARE of --minutes, from 0 to 1; {DECAY} if none is given",
    )
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--diffusion-steps", type=int, default=40000)
    parser.add_argument("--mmdit-steps", type=int, default=60000)
    parser.add_argument(
        "--scenes",
        type=int,
        default=None,
        help="scenes to train on, prepared once by the thousand, so that 1 takes as long as 1000, and reused; "
        "default: 60000, on a graphics card 200000",
    )
    parser.add_argument("--batch-size", type=int, default=None, help="default: 32, on a graphics card 512")
    parser.add_argument("--lr", type=float, default=None, help="peak learning rate; default: 1e-3, of the mmdit 4e-3")
    parser.add_argument("--checkpoint-every", type=float, default=3.0, help="minutes between checkpoints")
    parser.add_argument(
        "--preview-every", type=int, default=None, help="steps between judged previews; default: 1000, on a graphics card 2000"
    )
    parser.add_argument("--precision", default=None, help="default: 32-true, on a graphics card bf16-mixed")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="on a CPU: processes that train one network together, each with its own batches; a process a core is faster "
        "than one process of as many threads; default: 1",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        help="processes that draw scenes; 0: this one; default: 0, on a graphics card all cores",
    )
    parser.add_argument(
        "--size",
        choices=("small", "large"),
        default=None,
        help="of a new mmdit: 5.1 or 10.1 million weights; default: small, on a graphics card large",
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on a graphics card")
    parser.add_argument("--logger", choices=("csv", "wandb"), default="csv")
    parser.add_argument("--seed", type=int, default=0)
    return parser
