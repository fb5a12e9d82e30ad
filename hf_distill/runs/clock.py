"""`Clock`: how long the sessions of a run have worked, all processes together."""

from time import monotonic

__all__ = ["Clock"]


class Clock:
    """Seconds of work, from now on and in the sessions before.

    Args:
        processes: That work as long as this one does.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.kept: float | None = 0.0  # when the state was last kept: what came after it is lost with the work
        self._before: float | None = 0.0
        self._start = monotonic()

    def go_on(self, before: float | None) -> None:
        """Begin with the seconds of sessions before; None where they were not measured, and then neither is the sum."""
        self.kept = self._before = before
        self._start = monotonic()

    def keep(self) -> float | None:
        """The seconds until now, for the state that is kept with them."""
        if self._before is not None:
            self.kept = self._before + self.processes * (monotonic() - self._start)
        return self.kept
