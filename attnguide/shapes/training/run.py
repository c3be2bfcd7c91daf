"""The training command: stages, checkpoints, resuming, export."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import lightning as L
import torch
from diffusers import AutoencoderKL
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from attnguide.shapes.training.architecture import build_pipeline, build_tokenizer
from attnguide.shapes.training.autoencoder import AutoencoderModule, standardise_latents
from attnguide.shapes.training.data import FIRST_TRAINING_SEED, CachedLatents, Crops, encode_scenes, picture_tensor
from attnguide.shapes.training.diffusion import DiffusionModule


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the embedded shapes model.")
    parser.add_argument("--stage", choices=("all", "autoencoder", "diffusion", "export"), default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"), help="checkpoints, cached latents, logs")
    parser.add_argument("--export", type=Path, default=None, help="pipeline folder (default: OUT/pipeline)")
    parser.add_argument(
        "--start-from",
        type=Path,
        default=None,
        help="pipeline folder that a new training begins from, e.g. attnguide/shapes/weights; its autoencoder stays",
    )
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--diffusion-steps", type=int, default=40000)
    parser.add_argument("--scenes", type=int, default=60000, help="scenes encoded once and reused")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of the diffusion stage")
    parser.add_argument("--max-time", default=None, help="stop a stage after DD:HH:MM:SS; run again to go on")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--preview-every", type=int, default=1000, help="steps between judged previews of the diffusion stage")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    parser.add_argument("--logger", choices=("csv", "wandb"), default="csv")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def _trainer(args: argparse.Namespace, stage: str, steps: int, extra: list[Callback]) -> L.Trainer:
    logger: Logger
    if args.logger == "wandb":
        logger = WandbLogger(project="attnguide-shapes", name=stage, save_dir=args.out)
    else:
        logger = CSVLogger(args.out, name=f"log-{stage}")
    keep = ModelCheckpoint(
        args.out / stage, save_last=True, save_top_k=0, every_n_train_steps=args.checkpoint_every, enable_version_counter=False
    )
    callbacks: list[Callback] = [keep, *extra]
    if args.max_time:
        callbacks.append(Timer(args.max_time))
    return L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        precision=args.precision,
        gradient_clip_val=1.0,
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=50,
        val_check_interval=args.preview_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        inference_mode=False,
        enable_model_summary=False,
        default_root_dir=args.out,
    )


def _last_checkpoint(args: argparse.Namespace, stage: str) -> Path | None:
    path: Path = args.out / stage / "last.ckpt"
    return path if path.exists() else None


def _steps_done(args: argparse.Namespace, stage: str) -> int:
    """Optimizer steps behind the newest checkpoint; seeds after resuming follow it, so that nothing is drawn twice."""
    checkpoint = _last_checkpoint(args, stage)
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]) if checkpoint else 0


def train_autoencoder(args: argparse.Namespace) -> None:
    """Train (or go on training) the autoencoder, then standardise its latents and save it as ``OUT/vae``."""
    seed = L.seed_everything(args.seed + _steps_done(args, "autoencoder"), workers=True)
    module = AutoencoderModule(steps=args.autoencoder_steps)
    trainer = _trainer(args, "autoencoder", args.autoencoder_steps, [])
    trainer.fit(
        module,
        DataLoader(Crops(seed=seed), batch_size=32),
        ckpt_path=_last_checkpoint(args, "autoencoder"),
    )
    if trainer.global_step < args.autoencoder_steps:
        raise SystemExit("autoencoder not finished; run the same command again to go on")
    vae = module.vae.float().cpu().eval()
    standardise_latents(vae, torch.stack([picture_tensor(FIRST_TRAINING_SEED + i) for i in range(256)]))
    vae.save_pretrained(args.out / "vae")


def train_diffusion(args: argparse.Namespace) -> None:
    """Train (or go on training) text encoder and UNet on cached latents."""
    L.seed_everything(args.seed + _steps_done(args, "diffusion"), workers=True)
    if args.start_from and not (args.out / "vae").exists():
        AutoencoderKL.from_pretrained(args.start_from / "vae").save_pretrained(args.out / "vae")
    vae = AutoencoderKL.from_pretrained(args.out / "vae").eval()
    tokenizer = build_tokenizer()
    latents = encode_scenes(vae, args.scenes, args.out / "latents.safetensors")
    module = DiffusionModule(tokenizer, args.diffusion_steps, args.lr, args.compile, vae, args.out / "previews")
    if args.start_from and _last_checkpoint(args, "diffusion") is None:
        module.load_weights(args.start_from)
    loader = DataLoader(CachedLatents(latents, tokenizer), batch_size=args.batch_size, shuffle=True, drop_last=True)
    preview_seeds: DataLoader[int] = DataLoader(list(range(24)), batch_size=24, collate_fn=list)  # type: ignore[arg-type]
    trainer = _trainer(args, "diffusion", args.diffusion_steps, [EMAWeightAveraging(decay=0.998, update_every_n_steps=1)])
    trainer.fit(module, loader, preview_seeds, ckpt_path=_last_checkpoint(args, "diffusion"))


def export(args: argparse.Namespace) -> Path:
    """Write the pipeline from the newest checkpoint's averaged weights, in float16 safetensors."""
    checkpoint = _last_checkpoint(args, "diffusion")
    if checkpoint is None:
        raise SystemExit(f"nothing to export: no checkpoint in {args.out / 'diffusion'}")
    tokenizer = build_tokenizer()
    module = DiffusionModule(tokenizer, steps=1)
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    vae = AutoencoderKL.from_pretrained(args.out / "vae")
    pipeline = build_pipeline(vae, module.text_encoder, tokenizer, module.unet).to(dtype=torch.float16)
    target: Path = args.export or args.out / "pipeline"
    pipeline.save_pretrained(target, safe_serialization=True)
    _forget_paths(target)
    _readable_by_older_versions(target)
    return target


def _forget_paths(folder: Path) -> None:
    """Drop the paths of this machine that the libraries note in their configs."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def _readable_by_older_versions(folder: Path) -> None:
    """Names that transformers 4 and 5 both know: a tokenizer in one file, text encoder weights behind ``text_model.``.

    The older one would look for other tokenizer files, and put random numbers where it misses a weight's name.
    """
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"CLIPTokenizer"', '"CLIPTokenizerFast"'))
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> None:
    """Run the chosen stages."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.stage in ("all", "autoencoder") and not args.start_from and not (args.out / "vae").exists():
        train_autoencoder(args)
    if args.stage in ("all", "diffusion"):
        train_diffusion(args)
    if args.stage in ("all", "diffusion", "export"):
        logging.getLogger(__name__).info("pipeline: %s", export(args))
