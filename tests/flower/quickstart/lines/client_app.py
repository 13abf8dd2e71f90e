"""ClientApp: gradient steps on shuffled halves of the node's rows."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lines.task import gradient, load, loss


def make(*mods):
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(msg: Message, context: Context):
        x, y = load(context.node_config["partition-id"])
        (w,) = msg.content["arrays"].to_numpy_ndarrays()
        before = loss(w, x, y)
        for rows in np.split(np.random.permutation(len(x)), 2):
            w = w - context.run_config["learning-rate"] * gradient(w, x[rows], y[rows])
        times = context.state.setdefault("seen", MetricRecord({"times": 0}))
        times["times"] += 1
        metrics = MetricRecord({"train_loss": before, "times": times["times"], "num-examples": len(x)})
        return Message(RecordDict({"arrays": ArrayRecord([w]), "metrics": metrics}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context):
        x, y = load(context.node_config["partition-id"])
        (w,) = msg.content["arrays"].to_numpy_ndarrays()
        metrics = MetricRecord({"loss": loss(w, x, y), "num-examples": len(x)})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    return app


app = make()
