"""Set up the models of a run whose clients have different architectures (`model: {by_client: ...}`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fl import registry
from fl.config.config import Config
from fl.config.fields import fields_of
from fl.data.dataset import Dataset
from fl.errors import ConfigError, located
from fl.method.client import ClientAlgorithm
from fl.models.architectures.by_client import ByClient
from fl.models.client_models import ClientModel, ClientModels
from fl.models.section import Model

Make = Callable[[Config, Dataset], tuple[ClientModel, Dataset]]
KEY = "model.by_client"


def set_up_models(config: Config, dataset: Dataset, clients: int, make: Make) -> tuple[ClientModels, Dataset]:
    """Set up each architecture as if it were the run's only model.

    Args:
        config: the configuration; its model is by client.
        dataset: all data.
        clients: number of clients.
        make: builds the model of a configuration and looks at it; returns it, and the data as it takes them.

    Raises:
        ConfigError: the method exchanges parameters, the server evaluates, or a model does not fit. The path names the
            architecture.
    """
    part = config.model.part
    assert isinstance(part, ByClient)
    _check_options(config)
    check_method(config)
    _check_evaluation(config, dataset)
    try:
        assigned = part.assigned(clients)
    except ValueError as error:
        raise located(KEY, error) from error
    found: list[ClientModel] = []
    for name, section in part.models.items():
        try:
            model, seen = make(replace(config, model=section), dataset)
        except ConfigError as error:
            raise _of_architecture(error, name) from error
        if seen is not dataset and found:  # the models before it have to take the converted numbers, too
            return set_up_models(config, seen, clients, make)
        found.append(replace(model, name=name))
        dataset = seen
    return ClientModels(tuple(found), assigned), dataset


def check_fit(client: ClientAlgorithm, models: Sequence[ClientModel], x: torch.Tensor) -> None:
    """Have the client algorithm check that its models fit it, see `ClientAlgorithm.check_models`.

    Raises:
        ConfigError: they do not.
    """
    modules = {model.name: model.module for model in models}
    before = [(module, module.training) for module in modules.values()]
    try:
        with torch.no_grad():
            client.check_models({name: module.eval() for name, module in modules.items()}, x)
    except ValueError as error:
        raise located("client", error) from error
    finally:
        for module, mode in before:
            module.train(mode)


def _check_options(config: Config) -> None:
    for option in fields_of(Model):
        if option != "part" and getattr(config.model, option):
            raise ConfigError(f"model.{option}", "write it into the models of by_client; each has its own options")


def check_method(config: Config) -> None:
    """Check that the clients of a run with `by_client` exchange no parameters.

    Raises:
        ConfigError: they do, or their client algorithm does not say that they do not.
    """
    if not isinstance(config.model.part, ByClient):
        return
    for path, client in (("client", config.client), ("evaluation.adapt", config.evaluation.adapt)):
        if client is None or client.private_models:
            continue
        exchanges = "model" in (*client.sends, *client.receives)
        why = "exchanges the parameters of the model" if exchanges else "does not say that clients keep their models"
        own = [name for name in registry.names("client") if registry.lookup("client", name).private_models]
        raise ConfigError(
            KEY,
            f"{path} {registry.name_of(client)!r} {why}, and parameters of different architectures cannot be averaged. "
            f"Use one architecture for all clients, or a client algorithm that exchanges prototypes, outputs or "
            f"nothing: one of {own}, or your own with the class attribute private_models = True",
        )


def _check_evaluation(config: Config, dataset: Dataset) -> None:
    if config.evaluation.server and dataset.test is not None:
        raise ConfigError(
            "evaluation.server",
            "with model.by_client each client has its own model, and the server has none; set it to false. Clients "
            "evaluate on their own rows (splits.test)",
        )


def _of_architecture(error: ConfigError, name: str) -> ConfigError:
    """The error of one model, with a path that names its architecture."""
    key, _, _ = error.path.partition(".")
    if key != "model":
        return error
    message = str(error).removeprefix(f"{error.path}: ")
    return ConfigError(f"model.models.{name}{error.path.removeprefix('model')}", message)
