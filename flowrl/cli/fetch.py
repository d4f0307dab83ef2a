"""The command `flowrl fetch`."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, add_overrides

if TYPE_CHECKING:
    from flowrl.fetch.needs import Need
    from flowrl.fetch.run import Failure
    from flowrl.fetch.tasks import Origin

_CONFIGS = Path("configs")


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="the YAML file of a run: what it needs comes to the paths that it names; or a folder of such files, or "
        "its name below configs/, for all of them",
    )
    large = "model.path=/fast-disk/stable-diffusion-3.5-large"  # by whose last name its source is known
    add_overrides(parser, large, entry="rewards.train.0.options.path=/fast-disk/HPSv3")
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="FOLDER_OR_URL",
        help="where to take files from in place of huggingface.co and github.com: a folder that holds them at the "
        "relative paths that the configuration names, as one in which another flowrl fetched does, as ORG/NAME/..., or "
        "as the Hub's programs keep them (linked where it is on the same disk, else copied); or the URL of a mirror of "
        "the Hub, as HF_ENDPOINT may name it, to which HF_TOKEN is sent",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--dry-run", action="store_true", help="download nothing; say what would come, and how much, by sizes alone"
    )
    chosen.add_argument(
        "--check",
        action="store_true",
        help="download nothing and use no network; verify what is there, by checksums where they are known",
    )


def _fetch(args: argparse.Namespace) -> int:
    found = _needs(args.config, args.overrides)
    if not found:
        print(f"{args.config}: nothing to fetch: what it needs comes with flowrl, or was put where it names it")
        return 0
    if args.check:
        return _check(found, f"flowrl fetch {shlex.join([args.config, *args.overrides])}")
    origin = _origin(args.origin)
    if args.origin:
        _say(f"taking files from {args.origin}")
    return _bring(found, origin, dry_run=args.dry_run)


def _bring(found: list[Need], origin: Origin, *, dry_run: bool) -> int:
    from flowrl.fetch.failures import kept
    from flowrl.fetch.run import bring_all, survey

    tasks, failures = survey(found, origin, _say, thorough=not dry_run)
    _complain(failures)
    if dry_run:
        return 1 if failures else 0
    try:
        late = bring_all(tasks, _say)
    except KeyboardInterrupt:
        print(f"{kept()}: the same command goes on from there", file=sys.stderr)
        raise
    _complain(late)
    failed = len(failures) + len(late)
    _say(f"{len(found) - failed} of {len(found)} are there and whole" if failed else "everything is there and whole")
    return 1 if failed else 0


def _complain(failures: list[Failure]) -> None:
    """Say what could not be had, and below it what to do, which is said once where it is the same for several."""
    for advice in dict.fromkeys(failure.error.advice for failure in failures):
        for failure in failures:
            if failure.error.advice == advice:
                print(f"flowrl: error: {failure.need.key}: {failure.error.problem}", file=sys.stderr)
        if advice:
            print(textwrap.indent(advice, "  "), file=sys.stderr)
    sys.stderr.flush()


def _check(found: list[Need], command: str) -> int:
    from flowrl.fetch.verify import verify

    failed = 0
    for result in map(verify, found):
        head = f"{result.need.kind:<8} {result.need.path}"
        if not result.faults:
            _say(f"ok    {head}: {result.how}")
            continue
        failed += 1
        _say(f"FAIL  {head} ({result.need.key})")
        for fault in result.faults:
            _say(f"        {fault}")
        _say(f"        {result.need.advice or f'get it: {command}'}")
    return 1 if failed else 0


def _needs(text: str, overrides: list[str]) -> list[Need]:
    """What the configurations that `text` names need, each path once."""
    from flowrl.base.config_tree import ConfigError, did_you_mean
    from flowrl.config_kinds import RUN, kind_of, load_as
    from flowrl.fetch.needs import needs

    folder = next((path for path in (Path(text), _CONFIGS / text) if path.is_dir()), None)
    files = [Path(text)] if folder is None else [file for file in sorted(folder.glob("*.yaml")) if kind_of(file) == RUN]
    if folder is None and not Path(text).suffix and not Path(text).exists():
        runs = (file for file in _CONFIGS.glob("**/*.yaml") if kind_of(file) == RUN)
        profiles = sorted({str(file.parent.relative_to(_CONFIGS)) for file in runs})
        raise ConfigError(f"{text}: no such file and no such folder of configs/; {did_you_mean(text, profiles)}")
    if not files:
        raise ConfigError(f"{folder}: holds no configuration of a run; only what runs need can be fetched")
    by_path: dict[Path, Need] = {}
    for file in files:
        for need in needs(load_as(RUN, file, overrides)):
            by_path.setdefault(need.path, need)
    return list(by_path.values())


def _origin(text: str | None) -> Origin:
    if text is not None and "://" not in text:
        from flowrl.fetch.copies import Copies

        return Copies(Path(text))
    if text is not None and not text.startswith(("http://", "https://")):
        raise UserError(f"--from {text}: a mirror begins with http:// or https://")
    from flowrl.fetch.network import Network

    return Network(text or "")


def _say(text: str) -> None:
    print(text, flush=True)


FETCH_VERBS = {
    "fetch": Verb(
        summary="download and verify what a run needs: policy, rewards and prompts; exit 1 if something is missing",
        example="flowrl fetch configs/sd35-large/hpsv3.yaml --dry-run\n"
        "  flowrl fetch sd35-large\n"
        "  flowrl fetch sd35-large --from /mnt/models\n"
        "  flowrl fetch sd35-large --check\n\n"
        "exit code:\n"
        "  0  everything is there, or with --dry-run could be had\n"
        "  1  something is missing, damaged or not to be had; what could be had came\n"
        "  2  too little room on a disk, a folder that cannot be written or read, or wrong input",
        add_arguments=_fetch_arguments,
        run=_fetch,
    ),
}
