"""What the next inner step needs, made while this one computes.

    step k       [ take ] computes ................................... [ take ] computes ...
    step k + 1            [ samples -> micro-batches, by a thread ]   ^ there already

Whoever takes says what comes next, and nothing else is made: no sample is read that is not leased.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from atoll.train.work import Span

Made = TypeVar("Made")


class Ahead(Generic[Made]):
    """Makes something of the samples of one step after another, one step ahead.

    What is made depends on the spans alone, so it makes no difference when.
    """

    def __init__(self, make: Callable[[Sequence[Span]], Made]) -> None:
        self._make = make
        # Its thread waits for work for as long as there is somebody to ask for it.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
        self._coming: tuple[tuple[Span, ...], Future[Made]] | None = None

    def take(self, spans: Sequence[Span], *, then: Sequence[Span] = ()) -> Made:
        """Return what is made of these spans, and begin with the next ones; none: nobody knows.

        Raises what `make` does for these spans. If others were foretold, they are forgotten, and so
        is their failure.
        """
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == tuple(spans):
            made = coming[1].result()
        else:
            made = self._make(spans)
        if then:
            self._coming = (tuple(then), self._thread.submit(self._make, then))
        return made
