"""What users call the parts of each kind: one, several, and what they do."""

from __future__ import annotations

# kind -> (one, several, what they do)
NOUNS = {
    "strategy": ("strategy", "strategies", "The server's rule: what it broadcasts, and how it uses the updates."),
    "client": ("client algorithm", "client algorithms", "Local training. By default the strategy chooses it."),
    "partition": ("partition", "partitions", "Gives training rows, or columns, to clients."),
    "stream": ("stream", "streams", "A sequence of learning problems: continual learning."),
    "shift": ("shift", "shifts", "Changes the samples of each client in its own way."),
    "labels": ("choice of labels", "choices of labels", "Which training rows keep their labels."),
    "baseline": ("baseline", "baselines", "A simple method that a run is compared with, on the same splits."),
    "adapter": ("adapter", "adapters", "Freezes a model and adds small trainable tensors."),
    "data": ("data set", "data sets", "The samples, read from the data folder (FL_DATA), a file or a hub."),
    "augment": ("augmentation", "augmentations", "A random change of training batches."),
    "model": ("model", "models", "Builds the PyTorch module."),
    "task": ("task", "tasks", "What is learnt: number of outputs, loss and metrics."),
    "codec": ("codec", "codecs", "Encodes messages into bytes. Codecs can be chained."),
    "transform": ("transform", "transforms", "Changes updates before encoding and before the sum."),
    "after_reduction": ("change of reduced values", "changes of reduced values", "Runs before the strategy's step."),
    "protocol": ("protocol", "protocols", "Secure aggregation: who shares masks with whom."),
    "mechanism": ("noise mechanism", "noise mechanisms", "The noise of differential privacy."),
    "clipping": ("clipping rule", "clipping rules", "Bounds each update before noise is added."),
    "cohort": ("cohort sampler", "cohort samplers", "Chooses the clients of each round."),
    "adversary": ("adversary", "adversaries", "Clients that send other updates than they trained."),
    "optimiser": ("optimiser", "optimisers", "The steps of local training."),
    "server_optimiser": ("server optimiser", "server optimisers", "The server's step along the mean update."),
    "devices": ("device model", "device models", "Speed, bandwidth and memory of each client's device."),
    "availability": ("availability model", "availability models", "The times at which each client is present."),
    "tracker": ("tracker", "trackers", "Follows a run and writes its metrics elsewhere."),
    "server": ("server mode", "server modes", "When the server steps: in synchronous rounds, or asynchronously."),
}


def noun(kind: str, several: bool = False) -> str:
    """What users call one part of a kind, or several; the kind itself if there is no other word."""
    one, more, _ = NOUNS.get(kind, (kind, f"{kind} parts", ""))
    return more if several else one
