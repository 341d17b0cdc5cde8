"""python -m onebit.study: prepare all results of a profile, wherever they come from, or release them."""

import argparse
import sys

import torch

from .. import data
from ..errors import CorruptFile
from . import cache, engine
from .profiles import PROFILES, Job, Study


def say(line: str) -> None:
    """Tell the user; standard output is for `make`."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except CorruptFile as error:
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
    if missing and engine.run(Study.named(profile, wanted), options.jobs or engine.processes()):
        return 1
    print(wanted, profile)
    return 0


def _wanted(options: argparse.Namespace) -> tuple[str, str]:
    """Profile and data set, "auto" resolved."""
    profile = "paper" if torch.cuda.is_available() else "laptop"
    return (profile if options.profile == "auto" else options.profile,
            "mnist" if options.dataset == "auto" else options.dataset)


def _missing(dataset: str, profile: str) -> list[Job]:
    return [job for job in Study.named(profile, dataset).jobs() if cache.find(job.entry) is None]


def work(options: argparse.Namespace) -> int:
    """One worker process of `train`."""
    torch.set_num_threads(options.threads)
    return len(engine.work(Study.named(options.profile, options.dataset).jobs()))


def release(options: argparse.Namespace) -> int:
    """Copy the profile's results into data/released/ (to be committed); fails if one is missing."""
    for job in Study.named(*_wanted(options)).jobs():
        folder = cache.find(job.entry)
        if folder is None:
            say(f"{job.entry.name} is not computed yet; run make train first")
            return 1
        cache.release(folder)
    return 0


COMMANDS = {"prepare": prepare, "work": work, "release": release}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m onebit.study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__)
        auto = ["auto"] if name != "work" else []
        command.add_argument("--profile", choices=[*auto, *PROFILES], default="auto" if auto else "laptop")
        command.add_argument("--dataset", choices=[*auto, *data.NAMES], default="auto" if auto else "mnist")
        command.add_argument("--jobs", type=int, default=0, help="processes (prepare); 0: as many as pay")
        command.add_argument("--threads", type=int, default=1, help="threads of this process (work)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
