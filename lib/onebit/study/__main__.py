"""python -m onebit.study: plan the results of a profile, prepare them, wherever they come from, or release them."""

import argparse
import sys

import torch

from .. import data
from ..errors import CorruptFile, EngineUnavailable
from . import engines, graph
from .profiles import PROFILES
from .study import Job, Study


def say(line: str) -> None:
    """Tell the user; standard output is for `make`."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except (CorruptFile, EngineUnavailable) as error:
        say(str(error))
        return 1


def prepare(options: argparse.Namespace) -> int:
    """Say on stderr in one line which case this is, compute what is missing, print "<data set> <profile>"."""
    profile, wanted = _wanted(options)
    missing = _missing(wanted, profile)
    if missing and not data.available(wanted):
        absent = f"{len(missing)} results missing, and {wanted} is neither in data/ nor to be downloaded"
        if options.dataset != "auto":
            say(f"{absent}: put its files there, or say DATASET=digits")
            return 1
        say(f"{absent}: running the whole study on the embedded digits instead, in a folder of their own")
        wanted = "digits"
        missing = _missing(wanted, profile)
    elif missing:
        say(f"{len(missing)} results of {wanted}/{profile} missing and its data at hand: computing them")
    else:
        say(f"every result of {wanted}/{profile} is released or cached: rendering")
    if missing and _failed(engines.run(missing, options.engine, options.jobs, options.threads)):
        return 1
    print(wanted, profile)
    return 0


def _wanted(options: argparse.Namespace) -> tuple[str, str]:
    """Profile and data set, "auto" resolved."""
    profile = "paper" if torch.cuda.is_available() else "laptop"
    return (profile if options.profile == "auto" else options.profile,
            "mnist" if options.dataset == "auto" else options.dataset)


def _missing(dataset: str, profile: str) -> list[Job]:
    return graph.missing(Study.named(profile, dataset).jobs())


def _failed(failures: list[engines.Failure]) -> bool:
    """Name at the end everything that failed."""
    if failures:
        say(f"{len(failures)} results could not be computed:")
    for job, error in failures:
        say(f"  {job.entry.name}: {error}")
    return bool(failures)


def plan(options: argparse.Namespace) -> int:
    """Print what is missing, what it costs on this machine, and how that scales; takes half a minute."""
    from .plan import plan as text_of  # with its tables, which `prepare` can do without

    profile, wanted = _wanted(options)
    print(text_of(Study.named(profile, wanted), options.threads))
    return 0


def release(options: argparse.Namespace) -> int:
    """Copy the profile's results into data/released/ (to be committed); fails if one is missing."""
    from .release import released

    study = Study.named(*_wanted(options))
    try:
        for _ in released(study):
            pass
    except (FileNotFoundError, ValueError) as error:
        say(str(error))
        return 1
    return 0


COMMANDS = {"plan": plan, "prepare": prepare, "release": release}


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number, 0 or more, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m onebit.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument("--profile", choices=["auto", *PROFILES], default="auto")
        command.add_argument("--dataset", choices=["auto", *data.NAMES], default="auto")
        if function is not release:
            command.add_argument("--threads", type=_count, default=0, help="of each worker; 0: the cores shared out")
        if function is prepare:
            command.add_argument("--engine", choices=engines.ENGINES, default="local", help="where to compute")
            command.add_argument("--jobs", type=_count, default=0, help="processes; 0: as many as pay")
    return parser


if __name__ == "__main__":
    sys.exit(main())
