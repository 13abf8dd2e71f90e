"""Exports of a configuration as a Flower project, their refusals, and the certificates of a deployment."""

import re
import ssl
import stat
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("flwr", minversion="1.22")


import fl  # noqa: E402
from fl.config.config import Config, resolve  # noqa: E402
from fl.config.fields import fields_of  # noqa: E402
from fl.config.reading import read  # noqa: E402
from fl.errors import ConfigError  # noqa: E402
from fl.execution.section import Execution  # noqa: E402
from fl.flower.certificates import make_certificates  # noqa: E402
from fl.flower.configuration import apply_run_config, config_text  # noqa: E402
from fl.flower.deploy import client_app, server_app  # noqa: E402
from fl.flower.export import export  # noqa: E402
from tests import process  # noqa: E402
from tests.flower.test_deploy import CONFIG, TOYS  # noqa: E402

# -- refusals ---------------------------------------------------------------------------------------------------------
DEVICES = {"devices": {"name": "identical", "ms_per_sample": 1.0}}
REFUSED = {  # key of the message -> a configuration with it
    "server": {"system": DEVICES, "server": {"name": "buffered", "buffer": 2, "concurrency": 3}},
    "system": {"system": DEVICES},
    "adversary": {"adversary": {"name": "sign_flip", "share": 0.2}},
    "secure_aggregation": {"secure_aggregation": {"protocol": "secagg"}},
    "baselines": {"baselines": ["local"]},
    "codec.down": {"codec": {"down": ["delta", "fp16"]}},
    "model.by_client.assign": {"model": {"by_client": {"assign": "names.json", "models": {"small": "mlp"}}}},
    "partition": {"partition": {"name": "vertical", "parties": 2}},
    "execution.workers": {"execution": {"workers": 2}},
    "execution.address": {"execution": {"address": "auto"}},
    "execution.client_timeout": {"execution": {"executor": "ray", "client_timeout": 5.0}},
    "execution.plan": {"execution": {"plan": "vmap"}},
    "execution.chunk": {"execution": {"chunk": 4}},
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_deployment_cannot_do_is_refused_by_all_ends(key, tmp_path):
    config = resolve(CONFIG | REFUSED[key])
    for refuse in (server_app, client_app, lambda config: export(config, tmp_path / "app")):
        with pytest.raises(ConfigError, match=f"^{re.escape(key)}: ") as caught:
            refuse(config)
        assert caught.value.path == key
    assert not list(tmp_path.iterdir())


def test_the_page_has_every_key_of_a_configuration():
    page = (Path(__file__).parents[2] / "docs/flower.md").read_text()
    table = page.split("### What a deployment does with each key")[1].split("###")[0]
    named = set(re.findall(r"`([\w.]+)`", "".join(row.split("|")[1] for row in table.splitlines() if row[:1] == "|")))
    top = {name.partition(".")[0] for name in named if name[0] != "."}
    assert set(fields_of(Config)) <= top
    assert {f"execution.{name}" in named or f".{name}" in named for name in fields_of(Execution)} == {True}


def test_server_and_clients_train_in_the_loop():
    assert fl.config.yaml.parse(config_text(CONFIG | {"execution": {}}))["execution"]["plan"] == "loop"


def test_flowers_run_config_overrides_the_configuration():
    ours = {"out": "runs/a", "timeout": 0, "rounds": 5, "client.lr": 0.25}
    changed = fl.config.yaml.parse(apply_run_config(config_text(CONFIG), ours))
    assert (changed["rounds"], changed["client"]["lr"], changed["seed"]) == (5, 0.25, 0)


# -- export -----------------------------------------------------------------------------------------------------------
QUICKSTART = Path(__file__).parents[2] / "experiments/quickstart.yaml"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "cohort.size: 10 clients of a population of 3; use 1..3"),
        ({"cohort.size": 3, "evaluation.select": "val/f1"}, "evaluation.select: 'val/f1' is not a metric of this run"),
        ({"cohort.size": 3, "strategy": f"{TOYS}:Narrow"}, "strategy: clients train a module other than the run's"),
    ],
    ids=["cohort", "metric", "module"],
)
def test_an_export_checks_the_run_and_writes_nothing(changes, message, tmp_path):
    config = read(QUICKSTART, {"partition.clients": 3, **changes})
    with pytest.raises(ConfigError, match=re.escape(message)):
        export(config, tmp_path / "app")
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_code_2_or_with_the_next_commands(tmp_path):
    refused = process.fl("flower", "export", QUICKSTART, tmp_path / "app", "partition.clients=3")
    assert refused.returncode == 2 and refused.stderr.startswith("error: cohort.size: 10 clients")
    assert not list(tmp_path.iterdir())
    done = process.fl("flower", "export", QUICKSTART, tmp_path / "app", "partition.clients=3", "cohort.size=3")
    assert done.returncode == 0 and "partition-id=0" in done.stdout and f"flwr run {tmp_path}/app" in done.stdout
    assert "1 to 2, with --port 9095 to 9096" in done.stdout


def test_an_export_overwrites_nothing(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="DIR: .* is not empty; export to a new directory"):
        export(CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="DIR: .*thesis.tex is a file"):
        export(CONFIG, tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match="DIR: .*app lies below .*thesis.tex, which is a file"):
        export(CONFIG, tmp_path / "thesis.tex" / "app")


def test_an_export_has_the_files_beside_the_users_files(tmp_path, monkeypatch):
    """Files of one name in two folders stay apart, and each finds the helper of its own folder."""
    texts = {
        "a/helper.py": "RATE = 0.5",
        "a/mine.py": "import helper\nfrom strategies.fedavg import FedAvg\nclass Rule(FedAvg):\n    rate = helper.RATE",
        "b/helper.py": "RATE = 0.25",
        "b/mine.py": "import helper\nfrom fl import LocalTraining\nclass Mine(LocalTraining):\n    rate = helper.RATE",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    parts = {"strategy": f"{tmp_path}/a/mine.py:Rule", "client": f"{tmp_path}/b/mine.py:Mine"}
    folder = export(CONFIG | parts, tmp_path / "app").directory
    for name in texts:
        (tmp_path / name).unlink()
    config = resolve(read(folder / "config.yaml"))
    assert (config.strategy.rate, config.client.rate) == (0.5, 0.25)


def test_the_printed_commands_authenticate_every_supernode(tmp_path):
    certificates, superlink, register, supernode, run = export(CONFIG, tmp_path / "app").next_steps.splitlines()
    clients = CONFIG["partition"]["clients"]
    assert certificates.startswith(f"fl flower certificates tls --nodes {clients} ")
    assert "--enable-supernode-auth" in superlink and "--insecure" not in superlink + supernode
    assert register.startswith("flwr supernode register tls/node-0.pub my-superlink")
    assert "--auth-supernode-private-key tls/node-0" in supernode and f"each of 1 to {clients - 1}" in supernode
    assert run.startswith(f"flwr run {tmp_path / 'app'} my-superlink")


# -- certificates -----------------------------------------------------------------------------------------------------
def test_certificates_serve_tls_for_their_hosts_and_overwrite_nothing(tmp_path):
    files = make_certificates(tmp_path / "tls", ["server.example.org", "10.1.2.3"], nodes=2)
    names = ["ca.crt", "ca.key", "server.crt", "server.key", "node-0", "node-0.pub", "node-1", "node-1.pub"]
    assert [file.name for file in files] == names
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    assert all(modes[name] == 0o600 for name in ("ca.key", "server.key", "node-0", "node-1"))
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    for host in ("server.example.org", "10.1.2.3", "localhost", "127.0.0.1"):
        assert handshake(tmp_path / "tls", host) is None
    assert "not valid for 'other.example.org'" in handshake(tmp_path / "tls", "other.example.org")
    before = {file: file.read_bytes() for file in files}
    with pytest.raises(ConfigError, match="DIR: .* holds ca.crt, ca.key, server.crt, server.key already"):
        make_certificates(tmp_path / "tls")
    assert {file: file.read_bytes() for file in files} == before


def handshake(folder, host):
    """Connect a client that trusts ca.crt to a server in memory; returns the client's error, or None."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=folder / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up, server_hostname=host)]
    for end in [ends[1], ends[0]] * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return str(error)
    return None


def test_hosts_are_names_or_addresses(tmp_path):
    with pytest.raises(ConfigError, match="--host: 'https://server:8000' is neither"):
        make_certificates(tmp_path / "tls", ["https://server:8000"])
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_connection_for_flwr_run(tmp_path):
    done = process.fl("flower", "certificates", "tls", "--host", "server.example.org", folder=tmp_path)
    connection = tomllib.loads(done.stdout)["superlink"]["my-superlink"]
    assert connection == {"address": "server.example.org:8000", "root-certificates": f"{tmp_path}/tls/ca.crt"}
    assert done.stderr.splitlines()[0] == "wrote tls/ca.crt"
