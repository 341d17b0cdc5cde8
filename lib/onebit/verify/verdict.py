"""What a check found, in one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What was checked; whether it holds, None for not checked; and what was found."""

    what: str
    holds: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'ok', False: 'FAILED', None: 'skipped'}[self.holds]:8}{self.what:24} {self.text}"
