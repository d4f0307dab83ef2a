"""The commands that use a reward as it is: `flowrl reward check`, `flowrl reward serve` and `flowrl reward list`."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb

if TYPE_CHECKING:
    from flowrl.config import RewardSpec
    from flowrl.pocket.reward_inputs import TextShape
    from flowrl.reward_protocols import Reward
    from flowrl.types import RewardInput

_DEFAULT_PORT = 8700


def _reward_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="a name that `flowrl reward list` shows, or package.module:Class on PYTHONPATH"
    )
    parser.add_argument(
        "options",
        metavar="key=value",
        nargs="*",
        help="an option of the reward, its value as in YAML, such as device=cuda batch_size=8 path=/models/hpsv3",
    )


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _reward_arguments(parser)
    parser.add_argument(
        "--image-size", metavar="PIXELS", type=int, default=64, help="of the images that are scored (default 64)"
    )
    parser.add_argument(
        "--text",
        metavar="LxDxP",
        help="random text conditions of L tokens, width D and pooled width P, for a latent reward that does not read "
        "the pocket policy's texts; 333x4096x2048 is SD3.5 with 256 T5 tokens",
    )
    parser.add_argument(
        "--tolerance",
        metavar="SHARE",
        type=float,
        default=1e-4,
        help="how far a score may move with its place in the batch (default %(default)s; 0.01 suits bfloat16)",
    )


def _check(args: argparse.Namespace) -> int:
    from flowrl.reward_check import Trial, members, run_contract
    from flowrl.reward_loading import make_reward, preflight

    _check_image_size(args.image_size, _kind(args.name))
    spec = _spec(args)
    began = time.perf_counter()
    preflight(spec)
    reward = make_reward(spec)
    print(f"reward {args.name}, ready in {time.perf_counter() - began:.1f} s")
    found = members(reward)
    print(f"{found.verdict:<6}{'members':<13}{found.found}", flush=True)
    failed, done = int(found.verdict == "FAIL"), 1
    if not failed:
        trial = Trial(reward=reward, batch=_batch(reward, args), tolerance=args.tolerance)
        if args.text is not None and reward.latent_space is not None:
            _try_text(trial.reward, trial.batch, args.text)
        for name, finding in run_contract(trial):
            print(f"{finding.verdict:<6}{name:<13}{finding.found}", flush=True)
            failed += finding.verdict == "FAIL"
            done += finding.verdict != "info"
    print(f"{failed} of {done} checks failed; rewards/README.md says what is asked" if failed else "a good reward")
    return 1 if failed else 0


def _batch(reward: Reward, args: argparse.Namespace) -> RewardInput:
    """Four samples of the kind that the reward reads."""
    from flowrl.pocket.reward_inputs import latent_batch, pixel_batch

    _check_image_size(args.image_size, reward.input_kind)
    if reward.latent_space is None:
        return pixel_batch(args.image_size)
    return latent_batch(reward.latent_space, args.image_size, _text_shape(args.text))


def _check_image_size(size: int, kind: str) -> None:
    """Raise UserError when there are no such images, or latents of them, to try a reward of this kind on."""
    from flowrl.core.bucket_rules import TOKEN
    from flowrl.pocket.scene import IMAGE_SIZE

    steps = {
        "pixel": (IMAGE_SIZE, "the size of the images that a reward is tried on"),
        "latent": (TOKEN, "the pixels of one token"),
    }
    if kind not in steps:  # which is known when the reward is made
        return
    step, what = steps[kind]
    if size < step or size % step:
        raise UserError(f"--image-size must be a multiple of {step}, {what}, got {size}")


def _try_text(reward: Reward, batch: RewardInput, text: str) -> None:
    """Raise UserError when the reward fails on texts of the shape that was asked for, such as with other widths."""
    from flowrl.reward_call import RewardCallError, RewardInputError, call_reward

    try:
        call_reward(reward, batch)
    except RewardInputError:
        return  # which the first check says
    except RewardCallError as error:
        if error.__cause__ is not None:
            raise UserError(f"--text {text}: must be the shape of the texts that the reward reads: {error}") from error


def _text_shape(text: str | None) -> TextShape | None:
    from flowrl.pocket.reward_inputs import TextShape

    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,6})x([1-9]\d{0,6})x([1-9]\d{0,6})", text)
    if match is None:
        raise UserError(f"--text must be LxDxP, such as 333x4096x2048, got {text!r}")
    return TextShape(length=int(match[1]), width=int(match[2]), pooled=int(match[3]))


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    _reward_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default this machine alone)")
    parser.add_argument("--port", type=int, default=_DEFAULT_PORT, help="0 takes a free one (default %(default)s)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="the secret that clients must know, made when the file is not there; needed with any other --host",
    )
    parser.add_argument(
        "--max-mib", metavar="MIB", type=int, default=256, help="the largest request in MiB (default %(default)s)"
    )


def _serve(args: argparse.Namespace) -> int:
    from flowrl.base.signals import Stopped, stop_at_once
    from flowrl.reward_check import members
    from flowrl.reward_loading import make_reward, preflight
    from rewards.http.server import RewardServer, require_token
    from rewards.http.tokens import read_or_make_token

    if args.max_mib < 1:
        raise UserError(f"reward serve: --max-mib must be at least 1, got {args.max_mib}")
    require_token(args.host, has_token=args.token_file is not None)
    token = read_or_make_token(args.token_file) if args.token_file else ""
    spec = _spec(args)
    trained_on = preflight(spec)
    reward = make_reward(spec)
    if (found := members(reward)).verdict == "FAIL":
        raise UserError(f"reward serve: {args.name} is no reward: {found.found}")
    server = RewardServer(
        reward, trained_on=trained_on, host=args.host, port=args.port, token=token, max_bytes=args.max_mib * 2**20
    )
    print(_how_to_use(server.url, args.token_file, found.found), flush=True)
    try:
        with stop_at_once():
            server.serve_forever()
    except (KeyboardInterrupt, Stopped):
        print("stopping after the batch at hand", flush=True)
    finally:
        server.close()
    return 0


def _how_to_use(url: str, token_file: Path | None, what: str) -> str:
    secret = f', token_file: "{token_file.resolve()}"' if token_file else ""
    return "\n".join(
        [
            f"serving a reward: {what}",
            f"at {url}; Ctrl-C stops it. In a config:",
            "rewards:",
            "  train:",
            f'    - {{name: http, options: {{url: "{url}"{secret}}}}}',
        ]
    )


def _spec(args: argparse.Namespace) -> RewardSpec:
    """The reward of a name with options key=value."""
    from flowrl.base.config_file import parse_options
    from flowrl.config import RewardSpec

    return RewardSpec(name=args.name, options=parse_options(args.options))


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", action="store_true", help="print the names alone, which imports nothing")


def _list(args: argparse.Namespace) -> int:
    from importlib.metadata import entry_points

    from flowrl.registry import BUILT_IN, ENTRY_POINTS

    sources = {name: "built in" for name in BUILT_IN["reward"]}
    for entry in entry_points(group=ENTRY_POINTS["reward"]):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an installed package"
        sources.setdefault(entry.name, f"entry point of {package}")  # a built-in name wins
    width = max(map(len, sources)) + 2
    for name, source in sources.items():
        print(name if args.names else f"{name:<{width}}{_kind(name):<16}{source}", flush=True)
    return 0


def _kind(name: str) -> str:
    """What a reward of a name reads, as far as its class says it."""
    from flowrl.base.config_tree import ConfigError
    from flowrl.registry import resolve

    try:
        factory, _ = resolve("reward", name)
    except ConfigError:
        return "broken"
    return str(factory.input_kind) if hasattr(factory, "input_kind") else "as it is made"


REWARD_USE_VERBS = {
    "reward list": Verb(
        summary="list the rewards that are known by name: what each reads, and where it comes from",
        example="flowrl reward list",
        add_arguments=_list_arguments,
        run=_list,
    ),
    "reward check": Verb(
        summary="hold a reward to what rewards promise, a line for each check; exit 1 if it fails one",
        example="flowrl reward check dit_reward\n"
        "  PYTHONPATH=. flowrl reward check my_package.brightness:Brightness batch_size=8",
        add_arguments=_check_arguments,
        run=_check,
    ),
    "reward serve": Verb(
        summary="serve a reward over HTTP, for configs that name it as http with its url",
        example="flowrl reward serve hpsv3 path=/models/hpsv3 device=cuda\n"
        "  flowrl reward serve dit_reward --host 0.0.0.0 --token-file reward.token",
        add_arguments=_serve_arguments,
        run=_serve,
    ),
}
