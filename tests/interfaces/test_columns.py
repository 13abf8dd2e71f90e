"""Columns: vertical partitions, isolation of parties, exact bytes, and SplitNN of docs/interfaces/columns.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from numpy.testing import assert_allclose, assert_array_equal

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.data.parties import check_columns
from fl.data.sets.tabular import parties
from fl.errors import ConfigError
from fl.flower.export import export
from fl.simulation.build import load_data, set_up_run
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from fl.tensors import random
from fl.tensors.pickling import pack
from partitions.vertical import Vertical
from tests.interfaces.parties import FIRST, LABEL

PAGE = Path(fl.__file__).parent.parent / "docs/interfaces/columns.md"
PARTIES = Path(__file__).with_name("parties.py")
ROWS, BATCH, CUT = 70, 16, 3


@pytest.fixture(scope="module")
def splitnn(tmp_path_factory) -> Path:
    """The file with the method of the page."""
    path = tmp_path_factory.mktemp("method") / "splitnn.py"
    path.write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1])
    return path


def cancer(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)[:rows], y[:rows]


def settings(method: Path, **more) -> dict:
    return {
        "rounds": 2,
        "data": cancer(),
        "partition": {"name": "vertical", "columns": [[0, 1, 2, 3], list(range(4, 20)), list(range(20, 30))]},
        "splits": {"val": 0.0},
        "model": "softmax",
        "cohort": {"fraction": 1.0},
        "strategy": {"name": f"{method}:SplitNN", "cut": CUT, "batch": BATCH, "lr": 0.3},
        "client": {"name": f"{method}:Bottom"},
        "execution": {"executor": "serial"},
    } | more


# -- the partition ----------------------------------------------------------------------------------------------------
def table(columns: int, rows: int = 6) -> Dataset:
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    return Dataset({"x": x, "y": np.arange(rows) % 2}, names=tuple("abcdefg"[:columns]))


def test_columns_in_order_shuffled_and_by_name():
    assert [own.tolist() for own in Vertical(parties=3).party_columns(table(7))] == [[0, 1], [2, 3], [4, 5, 6]]
    named = Vertical(columns=(("c", 0), ("b",))).party_columns(table(4))
    assert [own.tolist() for own in named] == [[2, 0], [1]]
    drawn = [Vertical(parties=2, shuffle=True, seed=seed).party_columns(table(7)) for seed in (1, 1, 2, 3, 4)]
    assert sorted(np.concatenate(drawn[0]).tolist()) == list(range(7)) and list(map(len, drawn[0])) == [3, 4]
    assert drawn[0][0].tolist() == drawn[1][0].tolist() and len({str(own[0]) for own in drawn}) > 1


def loaded(splitnn: Path, **more):
    return load_data(resolve(read(settings(splitnn, **more))))


def test_all_parties_hold_the_same_rows_and_one_hold_out(splitnn):
    x, y = cancer()
    data, (period,) = loaded(splitnn, splits={"val": 0.1, "test": 0.2})
    partition = period.partition
    for view, count in (("train", 49), ("val", 7), ("test", 14)):
        rows = [partition.view_rows(client, view) for client in (0, 1)]
        assert_array_equal(*rows)
        assert len(rows[0]) == count
        assert_array_equal(data.parties[1][rows[1]], x[rows[1]][:, 20:])
        assert_array_equal(data.train["x"][rows[0]], x[rows[0]][:, :4])
        assert_array_equal(data.train["y"][rows[0]], y[rows[0]])
    assert [party.shape for party in data.parties] == [(70, 16), (70, 10)]


def test_columns_of_a_table_by_name(splitnn, tmp_path):
    (tmp_path / "people.csv").write_text(
        "age,y,income,height\n" + "".join(f"{i},{i % 2},{10 * i},{100 + i}\n" for i in range(9))
    )
    partition = {"name": "vertical", "columns": [["income"], ["height", "age"]]}
    data, _ = loaded(splitnn, data=str(tmp_path / "people.csv"), partition=partition)
    assert data.train["x"][3].tolist() == [30.0] and data.parties[0][3].tolist() == [103.0, 3.0]
    with pytest.raises(ConfigError, match="'weight' is not one of the columns .'age', 'income', 'height'."):
        loaded(splitnn, data=str(tmp_path / "people.csv"), partition=partition | {"columns": [["weight"], [0]]})


def test_the_servers_rows_are_aligned_with_those_of_the_parties(splitnn):
    config = resolve(read(settings(splitnn, splits={"val": 0.1, "test": 0.2})))
    setup, (x, y) = set_up_run(config), cancer()
    ctx, job = setup.server_context(0, np.arange(2)), setup.job(Path(), Path())
    for part, view in ((ctx.server, "train"), (ctx.val, "val"), (ctx.test, "test")):
        rows = setup.periods[0].partition.view_rows(1, view)
        assert_array_equal(part["x"], x[rows][:, :4])
        assert_array_equal(part["y"], y[rows])
        assert_array_equal(job.arrays_of(1)["x"][rows], x[rows][:, 20:])


def test_images_are_cut_into_halves_and_their_test_rows_follow_the_training_rows(splitnn):
    digits, _ = loaded(splitnn, data="digits", partition={"name": "iid", "clients": 2})
    width, height = (np.s_[..., :4], np.s_[..., 4:]), (np.s_[..., :4, :], np.s_[..., 4:, :])
    for along, (left, right) in (("width", width), ("height", height)):
        halves, (period,) = loaded(splitnn, data="digits", partition={"name": "vertical", "parties": 2, "along": along})
        rows, test = period.partition.view_rows(0, "train"), period.partition.view_rows(0, "test")
        assert_array_equal(halves.train["x"][rows], digits.train["x"][rows][left])
        assert_array_equal(halves.parties[0][rows], digits.train["x"][rows][right])
        assert_array_equal(halves.parties[0][test], digits.test["x"][right])
        assert_array_equal(halves.train["y"][test], digits.test["y"])


# -- isolation --------------------------------------------------------------------------------------------------------
def marked() -> tuple[np.ndarray, np.ndarray]:
    """Column j holds FIRST + j, label k is LABEL + k."""
    return np.tile(FIRST + np.arange(9, dtype=np.float32), (8, 1)), LABEL + np.arange(8) % 2


SPY = {
    "rounds": 1,
    "data": marked(),
    "task": "regression",
    "partition": {"name": "vertical", "columns": [[0, 1], [2, 3, 4, 5], [6, 7, 8]]},
    "splits": {"val": 0.0},
    "model": "softmax",
    "cohort": {"fraction": 1.0},
    "strategy": f"{PARTIES}:Ask",
    "client": f"{PARTIES}:Look",
    "execution": {"executor": "ray", "workers": 2},
}


def test_a_process_of_a_party_has_its_columns_only(tmp_path):
    """Each worker process looks for the marked numbers in all tensors and arrays, and for mapped files."""
    row = fl.run(SPY, out=tmp_path / "run").metrics[0]
    assert row["columns0"] == 0b000111100 and row["columns1"] == 0b111000000
    assert row["labels0"] == row["labels1"] == 0
    assert row["files0"] == row["files1"] == row["names0"] == row["names1"] == 1


def test_what_is_sent_to_workers_has_no_columns_and_no_labels(tmp_path):
    (x, y), config = marked(), resolve(read(SPY | {"execution": {"executor": "serial"}}))
    with Simulation(config, tmp_path / "run") as simulation:
        sent, all_arrays = sent_bytes(simulation.job), sent_bytes(simulation.run_setup.dataset.train)
    labels = y.astype(np.float32).tobytes()  # of a regression
    assert labels in all_arrays and x[:, :2].tobytes() in all_arrays  # what they look like
    assert labels not in sent and not any(x[:1, a:b].tobytes() in sent for a, b in ((0, 2), (2, 6), (6, 9)))


def sent_bytes(value) -> bytes:
    code, memories = pack(value)
    return b"".join([code, *(bytes(memory) for memory in memories)])


# -- SplitNN ----------------------------------------------------------------------------------------------------------
def trained(simulation: Simulation) -> tuple[dict, list[torch.Tensor]]:
    """Return the active party's parameters, and the weights that the passive parties keep."""
    model, states = simulation.run(), Segments(simulation.directory / "clients")
    kept = [states.read(where) for where in simulation.states.locations(np.arange(2))]
    return dict(model.model), kept


def test_splitnn_is_the_joint_model_trained_centrally(splitnn, tmp_path):
    """Plain torch: three linear layers side by side and one on top, on all columns at once."""
    with Simulation(resolve(read(settings(splitnn))), tmp_path / "run") as simulation:
        first = simulation.state
        bottoms = [first["bottom"].clone()]
        for client, width in ((0, 16), (1, 10)):
            bottoms.append(0.1 * torch.randn(width, CUT, generator=random.torch_generator(0, client, "bottom")))
        leaves = [tensor.clone().requires_grad_() for tensor in (*bottoms, first["top"])]
        ours, kept = trained(simulation)
    x, y = map(torch.from_numpy, cancer())
    parts, optimiser = (x[:, :4], x[:, 4:20], x[:, 20:]), torch.optim.SGD(leaves, lr=0.3)
    for round_ in range(2):
        order = random.permutation(ROWS, 0, round_, "rows")
        for start in range(0, ROWS, BATCH):
            rows = torch.from_numpy(order[start : start + BATCH])
            cuts = [part[rows] @ weight for part, weight in zip(parts, leaves)]
            loss = torch.nn.functional.cross_entropy(torch.cat(cuts, 1) @ leaves[-1], y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for found, expected in zip((ours["bottom"], *kept, ours["top"]), leaves):
        assert_allclose(found, expected.detach(), rtol=0, atol=1e-6)
    assert float((ours["top"] - first["top"]).abs().max()) > 0.05


def test_bytes_are_those_of_the_closed_form_and_predictions_are_free(splitnn, tmp_path):
    """2 (P - 1) n h b bytes a round: P = 3 parties, n training rows, cut width h, b = 4 bytes."""
    plain = fl.run(settings(splitnn), out=tmp_path / "plain")
    held = fl.run(settings(splitnn, splits={"val": 0.0, "test": 0.3}), out=tmp_path / "held")
    for result, rows in ((plain, ROWS), (held, ROWS - 21)):
        for row in result.metrics:
            assert row["uplink_bytes"] == row["downlink_bytes"] == 2 * rows * CUT * 4
    assert "test/accuracy" in held.metrics[-1] and "test/accuracy" not in plain.metrics[-1]
    assert {r["exchange"] for r in held.ledger.to_pylist()} == set(range(2 * -(-49 // BATCH)))
    assert {(r["direction"], r["group"]) for r in plain.ledger.to_pylist()} == {("up", "cut"), ("down", "slope")}


@pytest.mark.parametrize("codec", [None, {"up": ["error_feedback", {"name": "top_k", "ratio": 0.5}]}])
def test_free_exchanges_leave_bytes_time_metrics_states_and_carries_as_they_are(codec, tmp_path):
    """Rows of metrics, the ledger and the clients' states are those of a run without free exchanges."""
    seen = []
    for free in (0, 3):
        config = {
            "rounds": 2,
            "data": cancer(),
            "partition": {"name": "iid", "clients": 3},
            "model": "softmax",
            "cohort": {"fraction": 1.0},
            "strategy": {"name": f"{PARTIES}:Sometimes", "free": free},
            "client": f"{PARTIES}:Counts",
            "system": {"devices": {"name": "identical", "ms_per_sample": 1, "up_mbps": 1, "down_mbps": 1}},
            "execution": {"executor": "serial"},
        } | ({"codec": codec} if codec else {})
        with Simulation(resolve(read(config)), tmp_path / str(free)) as simulation:
            result = simulation.run()
            states = Segments(simulation.directory / "clients")
            kept = [states.read(where) for where in simulation.states.locations(np.arange(3))]
        rows = [{k: v for k, v in row.items() if "wall" not in k and "seconds" not in k} for row in result.metrics]
        seen.append((rows, [row["simulated_seconds"] for row in result.metrics], result.ledger.to_pylist(), str(kept)))
        assert result.metrics[-1]["visits"] == 3 * 2 * 2  # two counted exchanges in each of two rounds
    assert seen[0] == seen[1] and seen[0][1][0] > 0


@pytest.mark.ray
def test_equal_bits_on_ray_and_after_a_resume(splitnn, tmp_path):
    config = settings(splitnn, rounds=3, splits={"val": 0.0, "test": 0.2})
    straight = fl.run(config, out=tmp_path / "straight")
    on_ray = fl.run(config | {"execution": {"executor": "ray", "workers": 2}}, out=tmp_path / "ray")
    assert on_ray.digest == straight.digest
    path = tmp_path / "data.npz"
    np.savez(path, **dict(zip("xy", cancer())))
    config["data"] = str(path)
    again = fl.run(config, out=tmp_path / "file")
    fl.run(config, out=tmp_path / "cut", interrupt=lambda: True)
    resumed = fl.resume(tmp_path / "cut")
    assert again.digest == resumed.digest == straight.digest
    assert again.metrics[-1]["test/accuracy"] == resumed.metrics[-1]["test/accuracy"]


# -- real tables ------------------------------------------------------------------------------------------------------
def test_letters_of_four_parties(splitnn, tmp_path):
    """One epoch on 16 columns of 26 classes; chance is 0.04."""
    config = settings(splitnn, data="letter", partition={"name": "vertical", "parties": 4}, rounds=1)
    config["strategy"] = config["strategy"] | {"batch": 128, "cut": 8, "lr": 1.0}
    try:
        resolve(read(config)).data.load()
    except ValueError as missing:
        pytest.skip(str(missing))
    row = fl.run(config, out=tmp_path / "run").metrics[0]
    assert row["uplink_bytes"] == row["downlink_bytes"] == 3 * 16_000 * 8 * 4
    assert row["test/accuracy"] > 0.6


def test_fates_two_institutions_hold_disjoint_columns():
    try:
        owners = parties()
    except ValueError as missing:
        pytest.skip(str(missing))
    columns = Vertical(columns=tuple(tuple(own.tolist()) for own in owners.values()))
    assert [len(own) for own in columns.party_columns(table(7))] == [13, 10]
    check_columns(list(owners.values()), 23)


# -- mistakes ---------------------------------------------------------------------------------------------------------
VERTICAL = {"name": "vertical", "parties": 2}


def lists(*columns: list) -> dict:
    return {"partition": {"name": "vertical", "columns": list(columns)}}


@pytest.mark.parametrize(
    "changes, key, words",
    [
        ({"strategy": "fedavg", "client": "sgd"}, "partition", "strategy 'fedavg' is for clients that hold rows"),
        ({"partition": {"name": "iid", "clients": 2}}, "partition", "for parties that hold columns"),
        ({"partition": {"name": "vertical", "parties": 31}}, "partition.parties", "31 is more than the 30 columns"),
        ({"partition": {"name": "vertical", "parties": 1}}, "partition.parties", "not at least 2"),
        (lists([0, 1], [1, 2]), "partition.columns", "column 1 is given twice"),
        (lists([0, 1], []), "partition.columns", "party 1 has none"),
        (lists([0], [30]), "partition.columns", "30 of party 1 is not one of"),
        (lists(["age"], [1]), "partition.columns", "'age' is a name"),
        ({"partition": {"name": "vertical", "parties": 2, "along": "height"}}, "partition.along", "have no height"),
        ({"data": {"x": cancer()[0]}, "task": "regression"}, "data", "no 'y'"),
        ({"cohort": {"size": 1}}, "cohort", "1 of the 2 passive parties"),
        ({"shift": {"name": "noise"}}, "shift", "clients that hold rows"),
        ({"splits": {"clients": 1}}, "splits.clients", "clients that hold rows"),
        ({"codec": {"up": ["error_feedback", "sign"]}}, "codec.up", "about other rows each time"),
        ({"codec": {"down": ["delta", "sign"]}}, "codec.down", "about other rows each time"),
        ({"system": {"devices": {"name": "identical"}, "compute": "flops"}}, "system.compute", "use ms_per_sample"),
        ({"data": "digits", "partition": VERTICAL, "splits": {"test": 0.2}}, "splits.test", "has test rows"),
    ],
)
def test_mistakes_are_refused_before_round_0(splitnn, tmp_path, changes, key, words):
    with pytest.raises(ConfigError) as refused:
        fl.run(settings(splitnn, **changes), out=tmp_path / "run")
    assert refused.value.path == key and words in str(refused.value), str(refused.value)
    assert not (tmp_path / "run" / "ledger.arrow").exists()


def test_a_flower_project_of_columns_is_refused(splitnn, tmp_path):
    with pytest.raises(ConfigError, match="partition: it distributes columns, and each Flower app loads"):
        export(settings(splitnn, data="digits", partition={"name": "vertical", "parties": 2}), tmp_path / "app")


def test_a_users_partition_of_rows_with_shared_rows_is_refused(tmp_path):
    """Clients that share rows must be declared with `overlaps = True` in the class."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom dataclasses import dataclass\nfrom fl.data.partition import Partition\n\n"
        "@dataclass(frozen=True)\nclass Shared:\n    declared: bool = False\n\n    @property\n"
        "    def overlaps(self):\n        return self.declared\n\n    def split(self, dataset):\n"
        "        return Partition(np.r_[np.arange(70), np.arange(5)], np.array([0, 40, 75]))\n"
    )
    config = {"data": cancer(), "rounds": 1, "model": "softmax", "cohort": {"size": 2}, "strategy": "fedavg"}
    config |= {"execution": {"executor": "serial"}, "partition": {"name": f"{tmp_path}/mine.py:Shared"}}
    with pytest.raises(ConfigError, match="row 0 is given 2 times; clients must be disjoint"):
        fl.run(config, out=tmp_path / "refused")
    fl.run(config, out=tmp_path / "declared", **{"partition.declared": True})
