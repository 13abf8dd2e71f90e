"""What the tests of interfaces share: the bits of a run, and runs that have to have the same bits."""

import json

import fl
from fl.check.bench import finish
from fl.check.executors import Scattered
from fl.simulation.simulation import Simulation

TIMES = ("wall_seconds", "busy_seconds", "server_seconds")


def rows(result):
    """The rows of metrics, without measured times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in result.metrics]


def facts(result):
    """What two equal runs have in common: the model's digest, the metrics and the ledger."""
    return result.digest, json.dumps(rows(result)), result.ledger.to_pylist()


def check_resumed(config, straight, folder):
    """A run that is interrupted after its first round, and resumed, has the bits of `straight`."""
    fl.run(config, out=folder / "run", interrupt=lambda: True)
    assert facts(fl.resume(folder / "run")) == facts(straight)


def check_on_ray(config, serial, folder):
    """A run on two Ray workers has the bits of `serial`."""
    ray = {"execution.executor": "ray", "execution.workers": 2}
    assert facts(fl.run(config, out=folder / "run", **ray)) == facts(serial)


def check_order_and_resume(federation, settings):
    """The division of work among workers, and a resume, change no bits.

    Returns the plain run, and the directory of the resumed one.
    """
    plain = federation.run(**settings)
    federation.run(executor=Scattered(), **settings).require_same(plain, "scattered over two workers")
    with federation.simulation(**settings) as first:
        first.run(interrupt=lambda: True)
    with Simulation(first.config, first.directory, resumed=True) as last:
        finish(last).require_same(plain, "resumed")
    return plain, first.directory


def traced_devices(folder, rows):
    """A system section with a trace: `rows` are texts "client,ms_per_sample,up_mbps,down_mbps"."""
    path = folder / "devices.csv"
    path.write_text("\n".join(["client,ms_per_sample,up_mbps,down_mbps", *rows]) + "\n")
    return {"devices": {"name": "trace", "path": str(path)}}
