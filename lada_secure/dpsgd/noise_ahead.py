"""The next step's noise, drawn by a thread while the present step computes.

Noise depends on no data, so it can be drawn before the sum that it is added to is known. What
holds for noise that is drawn in line holds here:

* Every vector comes from a fresh key of the operating system, and goes to one step at most.
* A vector that was drawn and not used is thrown away: after an exception, when a stored state is
  restored, at the end, and in a process that was forked off, whose memory holds a copy of it.
* None is ever written anywhere. (A snapshot of a whole machine, taken within a step and started
  twice, holds a vector twice: whoever makes such snapshots of a running site must not start two.)
* At most one vector is drawn ahead.
* Where drawing fails, the step that needed the vector is refused before it begins.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from torch import Tensor

from lada_secure.errors import TrainingFailed

DrawsNoise = Callable[[], Tensor]


class _Drawing:
    """One vector on its way, and the thread that draws it."""

    def __init__(self, draw: DrawsNoise) -> None:
        self.process = os.getpid()
        self._vector: Tensor | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(draw,), name="noise of the next step", daemon=True
        )
        self._thread.start()

    def _run(self, draw: DrawsNoise) -> None:
        try:
            self._vector = draw()
        # Whatever it is, it is told where the vector is asked for: a thread has nobody to tell.
        except BaseException as error:
            self._error = error

    def vector(self) -> Tensor:
        """The vector, once; waits for the thread. Raises: whatever drawing it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        found, self._vector = self._vector, None
        if found is None:
            raise RuntimeError("this vector was taken before")
        return found

    def drop(self) -> None:
        """Throw the vector away; waits for the thread."""
        self._thread.join()
        self._vector = None


class NoiseAhead:
    """Vectors of noise, one after the other, each drawn while the one before is in use."""

    def __init__(self, draw: DrawsNoise) -> None:
        """Args: draw: makes a fresh vector; called in a thread, one call at a time."""
        self._draw = draw
        self._next: _Drawing | None = None

    def take(self) -> Tensor:
        """A vector that nobody had before; the next one is being drawn from now on.

        Raises: TrainingFailed: it could not be drawn, or no thread could be started.
        """
        drawing, self._next = self._next, None
        if drawing is not None and drawing.process != os.getpid():
            # Forked off: the parent uses this vector. The thread exists in the parent alone.
            drawing = None
        try:
            found = self._draw() if drawing is None else drawing.vector()
            self._next = _Drawing(self._draw)
        except Exception as error:
            raise TrainingFailed(
                f"noise of a step could not be drawn ({type(error).__name__}: {error}); the step "
                "was not taken, and nothing of it left. Start the run again"
            ) from error
        return found

    def discard(self) -> None:
        """Throw away what was drawn and not taken; the next `take` draws afresh."""
        drawing, self._next = self._next, None
        if drawing is not None and drawing.process == os.getpid():
            drawing.drop()

    def close(self) -> None:
        """Throw the last vector away; no thread is left."""
        self.discard()
