"""The command `flowrl score`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from flowrl.base.errors import UserError
from flowrl.base.signals import Stopped, stop_at_once
from flowrl.cli.verb import Verb, add_prompts, check_output
from flowrl.core.bucket_rules import bucket_fault


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="IMAGES",
        nargs="+",
        help="png, jpg, jpeg or webp files, or folders of them; in the order given, those of a folder in natural order",
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD",
        action="append",
        required=True,
        help="a reward by name, entry point or package.module:Class, with its options in the same quotes: "
        "'dit_reward path=DIR batch_size=4'; 'mine=dit_reward path=DIR' calls its column mine; may be repeated",
    )
    add_prompts(parser)
    parser.add_argument(
        "--latents",
        action="store_true",
        help="the files are safetensors with latents [N, C, h, w] or [C, h, w]; optional: seeds [N], and prompts as a "
        "JSON list in the metadata",
    )
    _policy_arguments(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="the table to write; by default standard output")
    parser.add_argument("--format", choices=("csv", "jsonl"), help="default: as --out ends, else csv")
    parser.add_argument(
        "--sheet", metavar="FILE", type=Path, help="a PNG of the images, the best by the first reward first"
    )


def _policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="the policy whose VAE and text encoders latent rewards need: a diffusers folder, or pocket (the default "
        "for images)",
    )
    parser.add_argument("--family", default="sd3", help="of that policy (default %(default)s)")
    parser.add_argument(
        "--max-sequence-length",
        metavar="TOKENS",
        type=int,
        help="T5 tokens of a text, as when the reward was trained (default: 14 for pocket, else 256)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the text encoders"
    )
    parser.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=int,
        help="bring images to about so many pixels squared, in buckets of aspect ratio, before latent rewards read "
        "them; 0 takes them as they are (default: as when the rewards were trained)",
    )
    parser.add_argument(
        "--bucket-step",
        metavar="PIXELS",
        type=int,
        help="by which the sides of those buckets differ (default: as when the rewards were trained)",
    )
    parser.add_argument(
        "--max-aspect",
        metavar="RATIO",
        type=float,
        help="of those buckets (default: as when the rewards were trained)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is a GPU, else cpu"
    )


def _score(args: argparse.Namespace) -> int:
    check_output(args.out)
    if args.sheet is not None and (args.sheet.is_dir() or not args.sheet.parent.is_dir()):
        raise UserError(f"--sheet {args.sheet}: must be a file in a folder that exists")
    if args.sheet is not None and args.sheet.suffix != ".png":
        raise UserError(f"--sheet {args.sheet}: is written as PNG; give it a name that ends in .png")
    if args.max_sequence_length is not None and args.max_sequence_length < 1:
        raise UserError(f"--max-sequence-length must be at least 1, got {args.max_sequence_length}")
    _check_images(args)
    from flowrl.models.image_sizes import ImageChoice
    from flowrl.score.command import Order, score_files

    by_suffix = "jsonl" if args.out is not None and args.out.suffix == ".jsonl" else "csv"
    order = Order(
        places=tuple(map(Path, args.files)),
        rewards=tuple(args.reward),
        kind="latent" if args.latents else "pixel",
        prompts=args.prompts,
        prompt=args.prompt,
        model=args.model,
        family=args.family,
        max_sequence_length=args.max_sequence_length,
        dtype=args.dtype,
        images=ImageChoice(image_size=args.image_size, bucket_step=args.bucket_step, max_aspect=args.max_aspect),
        device=args.device,
        out=args.out,
        form=args.format or by_suffix,
        sheet=args.sheet,
    )
    try:
        with stop_at_once():
            return score_files(order)
    except Stopped as stop:  # whose own words are of steps, which there are none of here
        print(f"flowrl: stopped by {signal.Signals(stop.exit_code - 128).name}", file=sys.stderr)
        return stop.exit_code


def _check_images(args: argparse.Namespace) -> None:
    """Raise UserError when there can be no such buckets, or when they would be for nothing."""
    size, step, aspect = args.image_size, args.bucket_step, args.max_aspect
    if args.latents and (size, step, aspect) != (None, None, None):
        raise UserError(
            "--latents: there are no images for --image-size, --bucket-step and --max-aspect; leave them out"
        )
    keys = ("--image-size, unless 0,", "--bucket-step", "--max-aspect")
    if fault := bucket_fault(size or None, step, aspect, keys=keys):
        raise UserError(fault)


SCORE_VERBS = {
    "score": Verb(
        summary="score images or latents that lie in files, with any rewards; exit 1 if one could not be",
        example="flowrl score --reward hpsv3 images/ --prompts prompts.txt --out scores.csv\n"
        "  flowrl score --reward hpsv3 --reward 'dit_reward path=my-reward' images/ --prompt 'a cat' --sheet best.png",
        add_arguments=_score_arguments,
        run=_score,
    ),
}
