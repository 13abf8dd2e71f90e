"""Base of FedAvgM, FedAdam, FedYogi and FedAdagrad: one server optimiser with its arguments on the strategy itself.

    model <- model + change(d),      d = mean(update)           `fl/method/server_optimiser.py` has the equations

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, call the family FedOpt.
Differs from the paper: d is weighted by `num_examples` (Algorithm 2 averages uniformly, its experiments use weights).
"""

from __future__ import annotations

from fl import Metrics, Params, ServerContext, ServerOptimiser, Strategy

from .fedavg import State


class FedOpt(Strategy):
    """A strategy whose step is that of `rule`."""

    @property
    def rule(self) -> ServerOptimiser:
        """The server optimiser that the strategy's arguments describe."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        _ = self.rule  # checks the arguments

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, self.rule.init(model))

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        return State(*self.rule.step(state.model, reduced, state.optimiser)), {}
