"""Check that our methods give the simulator's model in a Flower deployment, and count the bytes on the wire.

    python -m experiments.flower.deploy [--only fedavg] [--out DIR]

The deployment is a SuperLink and three SuperNodes, each in its own process, connected by TLS with certificates of
`fl flower certificates`. The SuperLink accepts only SuperNodes with a registered key. A proxy between each SuperNode
and the SuperLink forwards the encrypted bytes and counts them.

    idle     bytes of polling and heartbeats in the same time, at the rate measured before the first run
    ratio    (bytes on the wire - idle) / bytes in the ledger
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fl
from fl.config.reading import read
from fl.flower.certificates import make_certificates

HERE, NODES = Path(__file__).parent, 3
ROOT = HERE.parent.parent
# a large model with a small adapter: a client sends a small part of what it trains with
WIDE = {"model": {"name": "mlp", "hidden": [2048, 2048], "adapter": {"name": "lora", "rank": 32}}}
METHODS: dict[str, dict] = {
    "fedavg": {"strategy": "fedavg"},
    "scaffold": {"strategy": "scaffold"},
    "fedsa_lora": {"strategy": "fedsa_lora", **WIDE},
}
TLS = (("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt"))
IDLE_SECONDS = 20  # duration of the measurement of polling and heartbeats


class Proxy:
    """Forward connections to the port `target` and count bytes: "up" from the node, "down" to it."""

    def __init__(self, target: int):
        self.target, self.bytes = target, {"up": 0, "down": 0}
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            node, _ = self.socket.accept()
            try:
                link = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # the SuperLink is gone
                node.close()
                continue
            for source, sink, direction in ((node, link, "up"), (link, node, "down")):
                threading.Thread(target=self._forward, args=(source, sink, direction), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        try:
            while data := source.recv(1 << 16):
                self.bytes[direction] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Deployment:
    """Context manager that starts the processes of the deployment and ends them."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        make_certificates(folder / "tls", nodes=NODES)
        self.port, *self.local = _free_ports(1 + NODES)
        self.proxies = [Proxy(self.port) for _ in range(NODES)]
        # SuperLink and SuperNodes start other programs by name
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"FLWR_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "PATH": path}
        self.env = os.environ | variables
        (folder / "home").mkdir(exist_ok=True)
        (folder / "home" / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{folder}/tls/ca.crt"\n'
        )

    def __enter__(self) -> Deployment:
        tls, address = self.folder / "tls", ["--host", "127.0.0.1", "--port"]
        files = [f"--ssl-{name}file={tls}/{file}" for name, file in TLS]
        server = ["flower-superlink", "--disable-runtime-dependency-installation", "--enable-supernode-auth"]
        self._start("superlink", [*server, *address, str(self.port), *files])
        _wait_for(self.port)
        for i in range(NODES):
            self._flwr(["supernode", "register", tls / f"node-{i}.pub", "here"], self.folder / f"register-{i}.log")
        for i, (proxy, local) in enumerate(zip(self.proxies, self.local)):
            link = ["--superlink", f"127.0.0.1:{proxy.port}", "--root-certificates", str(tls / "ca.crt")]
            node = ["--node-config", f"partition-id={i} num-partitions={NODES}", *address, str(local), *files]
            key = ["--auth-supernode-private-key", str(tls / f"node-{i}")]
            self._start(f"supernode-{i}", ["flower-supernode", *link, *key, *node])
        for local in self.local:
            _wait_for(local)
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, name: str, command: list[str]) -> None:
        log = open(self.folder / f"{name}.log", "w")
        program = Path(sys.executable).parent / command[0]
        self.processes.append(
            subprocess.Popen(
                [program, *command[1:]], env=self.env, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        )

    def run(self, app: Path, out: Path) -> None:
        """Perform `flwr run` of an app and wait for its end."""
        log = app.with_suffix(".log")
        self._flwr(["run", app, "here", "--stream", "-c", f'out="{out}"'], log)
        if not (out / "model.safetensors").exists():
            raise RuntimeError(f"the run failed; see {log} and {self.folder}/*.log")

    def _flwr(self, arguments: list[str | Path], log: Path) -> None:
        """Run a command of `flwr`, which has to end well."""
        command = [Path(sys.executable).parent / "flwr", *arguments]
        with open(log, "w") as output:
            subprocess.run(command, env=self.env, stdout=output, stderr=subprocess.STDOUT, check=True, timeout=1200)

    def count(self) -> dict[str, int]:
        """Return the bytes on the wire since the start, by direction."""
        return {direction: sum(proxy.bytes[direction] for proxy in self.proxies) for direction in ("up", "down")}


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_for(port: int, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"nothing listens on port {port}")


def main() -> None:
    import torch
    from safetensors.torch import load_file

    from fl.flower.export import export

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METHODS, help="method to run; default: all")
    parser.add_argument("--out", type=Path, default=None, help="folder of runs and logs; default: a temporary one")
    args = parser.parse_args()
    base = (args.out or Path(tempfile.mkdtemp())).resolve()
    print("| method | rounds | largest difference | same bits | direction | on the wire | idle | ledger | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with Deployment(base / "deployment") as deployment:
        time.sleep(10)
        before = deployment.count()
        time.sleep(IDLE_SECONDS)
        idle_rate = {direction: (n - before[direction]) / IDLE_SECONDS for direction, n in deployment.count().items()}
        for name in [args.only] if args.only else METHODS:
            config = read(HERE / "digits.yaml") | METHODS[name]
            simulated = fl.run(config, out=base / name / "simulated")
            app, out = export(config, base / name / "app").directory, base / name / "deployed"
            before, start = deployment.count(), time.monotonic()
            deployment.run(app, out)
            seconds = time.monotonic() - start
            sent = {direction: n - before[direction] for direction, n in deployment.count().items()}
            idle = {direction: round(rate * seconds) for direction, rate in idle_rate.items()}
            ours, theirs = (load_file(d / "model.safetensors") for d in (simulated.directory, out))
            gap = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
            same = "yes" if all(torch.equal(ours[k], theirs[k]) for k in ours) else "no"
            for direction in ("up", "down"):
                ledger = sum(row[f"{direction}link_wire_bytes"] for row in simulated.metrics)
                ratio = (sent[direction] - idle[direction]) / ledger
                method = f"| {name} | {len(simulated.metrics)} | {gap:.0e} | {same}" if direction == "up" else "| | | |"
                figures = f"{sent[direction]:,} | {idle[direction]:,} | {ledger:,} | {ratio:.3f} |"
                print(f"{method} | {direction} | {figures}", flush=True)


if __name__ == "__main__":
    main()
