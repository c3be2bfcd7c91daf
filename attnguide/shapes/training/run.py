"""The training command: stages, prepared scenes, checkpoints, resuming, export."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch._dynamo
from diffusers import AutoencoderKL
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch.utils.data import DataLoader
from transformers import CLIPTextModel, CLIPTokenizer, T5Tokenizer

from attnguide.shapes.training import store
from attnguide.shapes.training.architecture import build_pipeline, build_tokenizer
from attnguide.shapes.training.arguments import parse_args
from attnguide.shapes.training.autoencoder import AutoencoderModule, standardise_latents
from attnguide.shapes.training.data import Crops, picture_tensor
from attnguide.shapes.training.diffusion import DiffusionModule
from attnguide.shapes.training.drawing import FIRST_TRAINING_SEED, Reader, Tokenize
from attnguide.shapes.training.export import save_pipeline
from attnguide.shapes.training.flow import FlowModule
from attnguide.shapes.training.mmdit import LARGE, SMALL, Size, build_t5_tokenizer, size_of, size_of_weights
from attnguide.shapes.training.pace import Averages, Clock, Keeper, Progress, Told

EMBEDDED = Path(__file__).parents[1] / "weights"
"""The embedded UNet model, whose autoencoder and CLIP the joint-attention model reads."""

FOLDERS = {"diffusion": "pipeline", "mmdit": "pipeline-mmdit"}
EXPORTED_AFTER = {"diffusion": ("all", "diffusion", "export"), "mmdit": ("mmdit", "export")}

STANDARD = 256
"""Number of pictures over which latents are standardised."""

log = logging.getLogger(__name__)


class Command:
    """One call of the command: its arguments, time limit, and the parts shared by all stages."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.clock = args, args.out, Clock(args.minutes)
        self.rank = int(os.environ.get("LOCAL_RANK", 0))  # Lightning starts the further processes with this command's line

    @cached_property
    def tokenizers(self) -> tuple[CLIPTokenizer, T5Tokenizer]:
        """CLIP's, which both networks read, and T5's."""
        return build_tokenizer(), build_t5_tokenizer()

    @property
    def tokenize(self) -> dict[str, Tokenize]:
        """Name of the ids (``clip_ids``, ``t5_ids``) -> function from captions to ids."""
        return {name: Reader(by) for name, by in zip(("clip_ids", "t5_ids"), self.tokenizers, strict=True)}

    def checkpoint(self, stage: str, finished: bool = False) -> Path:
        """Checkpoint of a stage; a finishing call has a file of its own, so that a later call can go on at the full rate."""
        path: Path = self.out / stage / ("finished.ckpt" if finished else "last.ckpt")
        return path

    def goes_on_from(self, stage: str) -> Path | None:
        """The checkpoint that training goes on from: the last one, or where all calls were finishing ones the finished one."""
        paths = (self.checkpoint(stage, finished) for finished in (False, True))
        return next((path for path in paths if path.exists()), None)

    def newest(self, stage: str) -> Path | None:
        """The checkpoint to export, after training: the last one, or the finished one if that is newer."""
        paths = (self.checkpoint(stage, finished) for finished in (False, True))
        return max((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime, default=None)

    def seed(self, stage: str) -> int:
        """Seed all generators, and log where the stage begins.

        A resumed stage and each process get another seed, so that no draws are repeated.
        """
        path = self.goes_on_from(stage)
        done = 0 if path is None else int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
        if not self.rank:
            log.info("%s: %s", stage, "a new training" if path is None else f"goes on from {path}, step {done}")
        return L.seed_everything(self.args.seed + done + 1_000_003 * self.rank, workers=True)

    def progress(self, steps: int) -> Progress:
        """Progress of the learning-rate schedule: by steps, by this call's minutes with ``--finish``, else constant 0."""
        if self.args.minutes is None:
            return lambda step: step / steps
        return (lambda step: 0.0) if self.args.finish is None else self.clock.progress(self.args.finish)

    def trainer(self, stage: str, steps: int, extra: list[Callback]) -> L.Trainer:
        """A trainer on one device that stops at the time limit and writes the stage's checkpoint."""
        args = self.args
        logger: Logger
        if args.logger == "wandb":
            logger = WandbLogger(project="attnguide-shapes", name=stage, save_dir=self.out)
        else:
            logger = CSVLogger(self.out, name=f"log-{stage}", flush_logs_every_n_steps=10)
        finishing = args.finish is not None and stage in FOLDERS  # the autoencoder's rate falls by steps, whatever the call
        keeper = Keeper(self.checkpoint(stage, finishing), self.clock, args.checkpoint_every)
        return L.Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=args.processes,
            strategy="ddp" if args.processes > 1 else "auto",
            use_distributed_sampler=False,  # batches are drawn by a seed of the process, previews by the first process alone
            max_steps=steps,
            max_epochs=-1,
            precision=args.precision,
            gradient_clip_val=1.0,
            logger=logger,
            callbacks=[*extra, keeper, Told()],
            enable_checkpointing=False,
            enable_progress_bar=sys.stdout.isatty(),  # a bar reads numbers off the device at every step
            log_every_n_steps=20,
            val_check_interval=args.preview_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            inference_mode=False,
            enable_model_summary=False,
            default_root_dir=self.out,
        )

    def fit(self, module: L.LightningModule, stage: str, steps: int, batches: store.Batches) -> None:
        """Train, or resume from the stage's checkpoint, with averaged weights and previews."""
        steps = steps if self.args.minutes is None else -1
        card = self.args.device == "cuda"
        trainer = self.trainer(stage, steps, [Averages(self.args.device, every=4 if card else 1)])
        previews: DataLoader[int] = DataLoader(list(range(24)), batch_size=24, collate_fn=list)  # type: ignore[arg-type]
        trainer.fit(module, DataLoader(batches, batch_size=None), previews, ckpt_path=self.goes_on_from(stage))


def train_autoencoder(command: Command) -> None:
    """Train (or go on training) the autoencoder, then standardise its latents and save it as ``OUT/vae``."""
    steps = command.args.autoencoder_steps
    seed = command.seed("autoencoder")
    module = AutoencoderModule(steps=steps)
    trainer = command.trainer("autoencoder", steps, [])
    trainer.fit(module, DataLoader(Crops(seed=seed), batch_size=32), ckpt_path=command.goes_on_from("autoencoder"))
    if trainer.global_step < steps:
        raise SystemExit("autoencoder not finished; run the same command again to go on")
    vae = module.vae.float().cpu().eval()
    standardise_latents(vae, torch.stack([picture_tensor(FIRST_TRAINING_SEED + i) for i in range(STANDARD)]))
    vae.save_pretrained(command.out / "vae")


def autoencoder(command: Command) -> AutoencoderKL:
    """The autoencoder of ``OUT``: the one trained there, or that of ``--start-from``; for the mmdit the embedded one."""
    folder: Path = command.out / "vae"
    if not folder.exists():
        source = command.args.start_from or EMBEDDED
        AutoencoderKL.from_pretrained(source / "vae").save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder).float().eval().to(command.args.device)


@contextmanager
def _drawing(workers: int) -> Iterator[Any]:
    """``map``, or with ``workers`` processes their pool's ``imap``."""
    if not workers:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield pool.imap


def prepare_scenes(command: Command) -> None:
    """Draw, encode and tokenize the scenes that ``OUT/scenes`` lacks."""
    start = time.monotonic()
    with _drawing(command.args.workers) as draw:
        store.prepare(command.out / "scenes", command.args.scenes, autoencoder(command), command.tokenize, draw)
    log.info("scenes: %d, after %.0f seconds", command.args.scenes, time.monotonic() - start)


def batches(command: Command, seed: int) -> store.Batches:
    """Endless batches of the prepared scenes, which are kept on the device."""
    args = command.args
    prepare_scenes(command)
    scenes = {name: values.to(args.device) for name, values in store.load(command.out / "scenes", args.scenes).items()}
    empty = {name: torch.from_numpy(ids([""])[0]).to(args.device) for name, ids in command.tokenize.items()}
    return store.Batches(scenes, args.batch_size, empty, seed=seed)


def train_diffusion(command: Command) -> None:
    """Train (or go on training) CLIP and UNet on prepared scenes."""
    args, seed = command.args, command.seed("diffusion")
    data, vae = batches(command, seed), autoencoder(command)
    progress = command.progress(args.diffusion_steps)
    module = DiffusionModule(command.tokenizers[0], progress, args.lr or 1e-3, args.compile, vae, command.out / "previews")
    if args.start_from and command.goes_on_from("diffusion") is None:
        module.load_weights(args.start_from)
    command.fit(module, "diffusion", args.diffusion_steps, data)


def flow_module(command: Command, vae: AutoencoderKL | None, size: Size) -> FlowModule:
    """The joint-attention model untrained, with the text encoder of ``--start-from`` or of the embedded model."""
    args = command.args
    clip = CLIPTextModel.from_pretrained((args.start_from or EMBEDDED) / "text_encoder").float()
    return FlowModule(
        (command.tokenizers[0], clip),
        command.progress(args.mmdit_steps),
        args.lr or 4e-3,
        size=size,
        compile_blocks=args.compile,
        vae=vae,
        previews=command.out / "previews-mmdit",
    )


def _begins_from_mmdit(command: Command) -> bool:
    return command.args.start_from is not None and (command.args.start_from / "transformer").exists()


def _size(command: Command) -> Size:
    """Transformer size to train: that of the checkpoint or of the starting pipeline, else ``--size``."""
    if (checkpoint := command.goes_on_from("mmdit")) is not None:
        return size_of_weights(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    if _begins_from_mmdit(command):
        return size_of(json.loads((command.args.start_from / "transformer" / "config.json").read_text()))
    return {"small": SMALL, "large": LARGE}[command.args.size]


def train_mmdit(command: Command) -> None:
    """Train (or go on training) T5 and transformer on prepared scenes."""
    data = batches(command, command.seed("mmdit"))
    module = flow_module(command, autoencoder(command), _size(command))
    if _begins_from_mmdit(command) and command.goes_on_from("mmdit") is None:
        module.load_weights(command.args.start_from)
    command.fit(module, "mmdit", command.args.mmdit_steps, data)


def export(command: Command) -> list[Path]:
    """Write a pipeline from the averaged weights of each network that has a checkpoint."""
    written = []
    for stage, folder in FOLDERS.items():
        checkpoint = command.newest(stage)
        if checkpoint is None or command.args.stage not in EXPORTED_AFTER[stage]:
            continue
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        vae = autoencoder(command).cpu()
        target = (command.args.export or command.out) / folder
        if stage == "mmdit":
            flow = flow_module(command, None, size_of_weights(state))
            flow.load_state_dict(state)
            save_pipeline(flow.pipeline(vae), target)
        else:
            module = DiffusionModule(command.tokenizers[0], lambda step: 0.0)
            module.load_state_dict(state)
            save_pipeline(build_pipeline(vae, module.text_encoder, module.tokenizer, module.unet), target)
        written.append(target)
    if not written:
        raise SystemExit(f"nothing to export: no checkpoint in {command.out}")
    return written


def main(argv: list[str] | None = None) -> None:
    """Run the chosen stages."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
    command = Command(args)
    if args.stage in ("all", "autoencoder") and not args.start_from and not (args.out / "vae").exists():
        train_autoencoder(command)
    if args.stage == "scenes":
        prepare_scenes(command)
    if args.stage in ("all", "diffusion"):
        train_diffusion(command)
    if args.stage == "mmdit":
        train_mmdit(command)
    if args.stage in ("all", "diffusion", "mmdit", "export") and not command.rank:
        log.info("pipeline: %s", ", ".join(map(str, export(command))))
