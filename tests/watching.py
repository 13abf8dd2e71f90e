"""Callbacks that call a function at one point of a run."""

from fl import Callback


class _Calls(Callback):
    def __init__(self, call):
        self.call = call


class AtStart(_Calls):
    """Call with the run."""

    def start(self, run):
        self.call(run)


class AtReady(_Calls):
    """Call with the run, once its workers have started."""

    def ready(self, run):
        self.call(run)


class AfterRound(_Calls):
    """Call with the metrics of each committed round."""

    def round(self, row):
        self.call(row)
