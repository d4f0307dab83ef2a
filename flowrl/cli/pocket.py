"""The commands `flowrl pocket ...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl.base.embedded import EMBEDDED
from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, check_output


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work", metavar="DIR", type=Path, default=Path(".pocket-build"), help="unfinished work (default %(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="the folder to fill; by default that of the package")
    parser.add_argument("--seed", type=int, default=0, help="the seed (default 0)")
    parser.add_argument(
        "--scale",
        metavar="SHARE",
        type=float,
        default=1.0,
        help="do a share of the work, with --out elsewhere: 0.02 tries the way in minutes and makes useless models",
    )


def _build(args: argparse.Namespace) -> int:
    if args.scale != 1 and args.out is None:
        raise UserError("pocket build: --scale makes models that must not replace the package's; name another --out")
    from flowrl.pocket.build import build

    build(out=args.out or EMBEDDED, work=args.work, seed=args.seed, scale=args.scale)
    return 0


def _preferences_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("runs/pocket-preferences"),
        help="the folder to fill, or to go on with (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="the seed (default 1, that of the embedded rewards)")
    parser.add_argument("--scale", metavar="SHARE", type=float, default=1.0, help="make a share of it (default 1)")


def _preferences(args: argparse.Namespace) -> int:
    from flowrl.base.embedded import embedded
    from flowrl.pocket.build import check_begun
    from flowrl.pocket.build_plan import BuildPlan
    from flowrl.pocket.preference_store import draw_preferences, make_captioner

    plan = BuildPlan().scaled(args.scale)
    args.out.mkdir(parents=True, exist_ok=True)
    check_begun(args.out, f"flowrl pocket preferences --seed {args.seed} --scale {args.scale:g}", "--out")
    draw_preferences(args.out, embedded("sd35"), seed=args.seed, plan=plan.pairs)
    make_captioner(args.out, seed=args.seed, plan=plan.captions)
    print(args.out)
    return 0


def _images_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("pocket.png"), help="the PNG to write (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of the noise (default 0)")


def _images(args: argparse.Namespace) -> int:
    check_output(args.out)
    from flowrl.pocket.sheet import draw_sheet

    print(draw_sheet(args.out, seed=args.seed))
    return 0


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _info(_: argparse.Namespace) -> int:
    from flowrl.pocket.provenance import describe

    print(describe(EMBEDDED))
    return 0


POCKET_VERBS = {
    "pocket build": Verb(
        summary="train the models of the embedded small world from nothing (over an hour), or go on with it",
        example="flowrl pocket build --work /tmp/pocket-work --out /tmp/pocket",
        add_arguments=_build_arguments,
        run=_build,
    ),
    "pocket preferences": Verb(
        summary="draw preference pairs of the embedded policy, to train rewards on (25 minutes), or go on with it",
        example="flowrl pocket preferences --out runs/pocket-preferences\n"
        "  flowrl reward train configs/reward/pocket/full.yaml",
        add_arguments=_preferences_arguments,
        run=_preferences,
    ),
    "pocket info": Verb(
        summary="say how the embedded models were made and how good they are",
        example="flowrl pocket info",
        add_arguments=_no_arguments,
        run=_info,
    ),
    "pocket images": Verb(
        summary="draw a sheet of images with the embedded policy",
        example="flowrl pocket images --out pocket.png",
        add_arguments=_images_arguments,
        run=_images,
    ),
}
