"""The command `flowrl judge`."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl.base.errors import UserError
from flowrl.base.signals import Stopped, stop_at_once
from flowrl.cli.verb import Verb, add_prompts

_OURS = ("model", "messages", "stream", "n")  # fields of a request that the protocol sets


def _judge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        metavar="IMAGES|RUN|EXPERIMENT",
        nargs="+",
        help="png, jpg, jpeg or webp files or folders of them, as flowrl score takes them; or runs or "
        "experiments, for the sample sheets in them",
    )
    add_prompts(parser)
    parser.add_argument(
        "--step",
        metavar="N",
        type=int,
        action="append",
        default=[],
        help="of the runs (default: all), and of an experiment's those that have it; may be repeated",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="for results.jsonl and summary.json; needed, but for an experiment, where it is judged in its folder",
    )
    parser.add_argument(
        "--judge", choices=("endpoint", "oracle"), default="endpoint", help="the oracle is that of the pocket world"
    )
    _endpoint_arguments(parser)
    _cost_arguments(parser)


def _endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible server, such as http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--model", metavar="NAME", help="as the endpoint calls it; it must see images")
    parser.add_argument(
        "--key-env",
        metavar="NAME",
        default="FLOWRL_JUDGE_KEY",
        help="the environment variable that holds the endpoint's key, if it wants one (default %(default)s)",
    )
    parser.add_argument(
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a further field of every request, such as temperature=0 or reasoning_effort=low; may be repeated",
    )
    parser.add_argument(
        "--concurrency", metavar="N", type=int, default=8, help="requests under way at a time (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=120.0, help="for one answer (default %(default)g)"
    )
    parser.add_argument(
        "--retries",
        metavar="N",
        type=int,
        default=5,
        help="of a request that gets no answer: no connection, a timeout, 429, 5xx (default %(default)s)",
    )
    parser.add_argument(
        "--attempts",
        metavar="N",
        type=int,
        default=3,
        help="answers asked for at most while they are refusals or malformed (default %(default)s)",
    )
    parser.add_argument("--cache", metavar="FOLDER", type=Path, help="of answers (default: cache in --out)")


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--price-in", metavar="PRICE", type=float, default=0.0, help="of a million tokens asked")
    parser.add_argument("--price-out", metavar="PRICE", type=float, default=0.0, help="of a million tokens answered")
    parser.add_argument(
        "--image-tokens", metavar="N", type=int, help="that an image counts for (default: one per 28 x 28 pixels)"
    )
    parser.add_argument(
        "--answer-tokens",
        metavar="N",
        type=int,
        default=200,
        help="of an answer, with the thinking of a model that thinks (default %(default)s)",
    )
    parser.add_argument("--yes", action="store_true", help="go ahead where there is a price")


def _judge(args: argparse.Namespace) -> int:
    _check_numbers(args)
    options = _options(args.option)
    if args.judge == "endpoint" and not (args.endpoint and args.model):
        raise UserError("--endpoint URL and --model NAME say who judges; in the pocket world, --judge oracle does")
    if args.judge == "oracle" and (args.endpoint or args.model):
        raise UserError("--judge oracle asks nobody: leave out --endpoint and --model")
    places = tuple(map(_place, args.places))
    from flowrl.judge.command import Order, judge_as_ordered
    from flowrl.judge.connection import EndpointSetting
    from flowrl.judge.estimate import Prices
    from flowrl.judge.secret import Secret

    endpoint = None
    if args.judge == "endpoint":
        secret = Secret.of_environment(args.key_env)
        if secret.covered(json.dumps(options)) != json.dumps(options):
            raise UserError(f"--option: holds the key in {args.key_env}; the results name options, so leave it out")
        endpoint = EndpointSetting(
            url=args.endpoint,
            model=args.model,
            secret=secret,
            key_variable=args.key_env,
            timeout_s=args.timeout,
            retries=args.retries,
            concurrency=args.concurrency,
        )
    order = Order(
        places=places,
        out=args.out or _out_of(places),
        endpoint=endpoint,
        prompts=args.prompts,
        prompt=args.prompt,
        steps=tuple(args.step),
        cache=args.cache,
        attempts=args.attempts,
        options=options,
        prices=Prices(input=args.price_in, output=args.price_out),
        image_tokens=args.image_tokens,
        answer_tokens=args.answer_tokens,
        yes=args.yes,
    )
    try:
        with stop_at_once():
            return judge_as_ordered(order)
    except Stopped as stop:  # whose own words are of steps, which there are none of here
        print(f"flowrl: stopped by {signal.Signals(stop.exit_code - 128).name}", file=sys.stderr)
        return stop.exit_code


def _place(text: str) -> Path:
    """A file or folder as it is named, else the experiment or run of this name, as the other commands take it."""
    from flowrl.find_runs import RUNS, experiment_dir, run_dir
    from flowrl.run_dir import LATEST

    if (experiment := experiment_dir(text)) is not None:
        return experiment
    names_run = not Path(text).exists() and (Path(text).name == LATEST or (RUNS / text).is_dir())
    return run_dir(text) if names_run else Path(text)


def _out_of(places: Sequence[Path]) -> Path:
    """Where the results go unless it is said; raises UserError for anything but one experiment."""
    from flowrl.matrix.folder import JUDGED, is_experiment

    if len(places) == 1 and is_experiment(places[0]):
        return places[0] / JUDGED
    raise UserError("--out FOLDER says where the results go; only that of one experiment may be left out")


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise UserError for a number that means nothing."""
    least = {
        "--concurrency": (args.concurrency, 1),
        "--retries": (args.retries, 0),
        "--attempts": (args.attempts, 1),
        "--price-in": (args.price_in, 0),
        "--price-out": (args.price_out, 0),
        "--image-tokens": (0 if args.image_tokens is None else args.image_tokens, 0),
        "--answer-tokens": (args.answer_tokens, 0),
    }
    for name, (value, lowest) in least.items():
        if not (math.isfinite(value) and value >= lowest):
            raise UserError(f"{name} must be at least {lowest}, got {value}")
    if not (math.isfinite(args.timeout) and args.timeout > 0):
        raise UserError(f"--timeout must be above 0, got {args.timeout}")


def _options(words: Sequence[str]) -> Mapping[str, Any]:
    """Further fields of the request from words `key=value`, the values YAML."""
    from flowrl.base.config_file import parse_options

    options = parse_options(words, rule="--option must read key=value, such as temperature=0")
    for key in options:
        if key in _OURS:
            raise UserError(f"--option {key}: is set by the protocol of judging; leave it out")
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"--option: cannot be sent as JSON: {error}") from None
    return options


JUDGE_VERBS = {
    "judge": Verb(
        summary="have a vision-language model, or the pocket oracle, judge images from 1 to 10 on five dimensions",
        example="flowrl judge images/ --prompts prompts.txt --out judged --endpoint http://127.0.0.1:8000/v1 "
        "--model Qwen/Qwen3-VL-8B-Instruct\n"
        "  flowrl judge runs/latest --out judged --endpoint https://api.openai.com/v1 --model gpt-5 --price-in 1.25 "
        "--price-out 10 --answer-tokens 1500 --yes\n"
        "  flowrl judge runs/latest --judge oracle --out judged\n"
        "  flowrl judge runs/rewards-pocket --judge oracle",
        add_arguments=_judge_arguments,
        run=_judge,
    ),
}
