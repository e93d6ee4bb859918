"""Signals that ask a training to end: it finishes its step, writes a checkpoint and exits."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger("detectron2." + __name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds in which further signals are the same request: a terminal and torchrun may both pass one on.
SAME_REQUEST = 2.0
AGREEMENT_PERIOD = 8  # iterations after which several processes agree whether to end


class SignalHook(HookBase):
    """Ends a training after the step in which a process receives SIGTERM, SIGINT or SIGHUP.

    Several processes agree on a step within the next `AGREEMENT_PERIOD`. The main process writes a
    checkpoint, and all exit with 128 plus the number of the signal. A second signal ends a process at once,
    and so does one outside the steps. Signals that the process was started to ignore stay ignored.

    Args:
        checkpointer: writes the checkpoint.
        period: the number of iterations between two checkpoints that are written anyway.
        before_saving: called in all processes before a checkpoint is written.
    """

    def __init__(
        self, checkpointer: Checkpointer, period: int, before_saving: Sequence[Callable[[], None]] = ()
    ) -> None:
        self.checkpointer, self.period, self.before_saving = checkpointer, period, before_saving
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._received, self._received_at = 0, 0.0

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # where Python handles no signals
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)

    def after_train(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        last = iteration + 1 >= self.trainer.max_iter
        # Several processes ask each other only now and then, since that takes them time.
        if comm.get_world_size() > 1 and not last and (iteration + 1) % AGREEMENT_PERIOD:
            return
        received = max(comm.all_gather(self._received))
        if not received:
            return
        if not last and (iteration + 1) % self.period:
            for prepare in self.before_saving:
                prepare()
            # Of all processes, this writes in the main one.
            self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()  # a process that leaves first would take the others down
        name = signal.Signals(received).name
        logger.warning("%s: training ends after iteration %d; --resume goes on from there", name, iteration)
        if last:  # the hooks of an ended training would still evaluate it
            _end(received)
        sys.exit(128 + received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._received_at = number, now
        elif now > self._received_at + SAME_REQUEST:
            _end(number)


def _end(number: int) -> None:
    """End this process by a signal, as if it handled none."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
