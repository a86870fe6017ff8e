"""The cases: functions with a fresh `Harness` each, by name."""

from dataclasses import dataclass, field


@dataclass
class Case:
    name: str
    run: object
    options: dict = field(default_factory=dict)
    # Runs only if it is named.
    slow: bool = False
    # Takes half a minute or more: begins first, so that nothing waits for it at the end.
    long: bool = False

    @property
    def title(self) -> str:
        return " ".join((self.run.__doc__ or "").split()).rstrip(".")


CASES: dict[str, Case] = {}


def case(slow: bool = False, long: bool = False, **options):
    """Register a case. The other options are those of `Harness.open`."""

    def register(function):
        CASES[function.__name__] = Case(function.__name__, function, options, slow, long)
        return function

    return register


from . import contents, delivery, deployment, examples, messages, outages, replicas, rooms, sends, starts, trust  # noqa: E402, F401
