"""Flower in both directions.

Run any Flower app on our engine, unchanged: seeded, with counted bytes, on one core or on all.

    simulate(server_app, client_app, num_nodes, seed=0)         in Python
    fl flower run APP_DIR [key=value]                           the folder of an app, see fl/flower/app.py

Run our methods as Flower apps, see fl/flower/deploy.py.

    server_app(config), client_app(config)                      in Python
    fl flower export CONFIG DIR                                 a Flower project

Find out which node is which client on any Grid, see fl/flower/hello.py: answer_hello(app), nodes_by_partition(grid).

Only this package imports flwr.
"""

from fl.flower.grid import LocalGrid
from fl.flower.hello import answer_hello, nodes_by_partition
from fl.flower.simulate import Result, simulate

__all__ = ["LocalGrid", "Result", "answer_hello", "nodes_by_partition", "simulate"]
