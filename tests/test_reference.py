"""`fl show config`, the JSON Schema, the pages of docs/reference/, completion in shells, and --json of all commands."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import jsonschema
import pytest
import typer
import yaml

import fl as package
from experiments import reference
from fl.cli.app import app
from fl.config.config import Config, resolve
from fl.config.fields import fields_of
from fl.config.reading import read
from fl.config.yaml import parse
from fl.errors import ConfigError, UnknownName
from fl.kinds import KINDS
from fl.reference import parts, tree
from fl.reference.limits import Limit, limits_of
from fl.reference.nouns import NOUNS
from fl.reference.override_keys import keys_for, suggested_values
from fl.reference.schema import configuration_schema, schema_of_key, schema_of_kind
from fl.reference.source import definition_of
from tests.process import fl

ROOT = Path(package.__file__).parent.parent
CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.3},
    "model": {"name": "mlp", "hidden": [8], "freeze": ["0.*"]},
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"lr": 0.1, "optimiser": {"momentum": 0.9}},
}


# -- the keys ---------------------------------------------------------------------------------------------------------
def test_the_tree_has_every_key_with_type_default_and_meaning():
    keys = tree.configuration()
    assert [key.path for key in keys] == list(fields_of(Config))
    every = tree.below("evaluation.every")
    assert (every.words, every.default) == ("whole number, 1 or more", "1")
    assert every.meaning.startswith("rounds between evaluations")
    assert all(key.meaning and key.words and key.words != "any value" for key in tree.flat(keys))
    assert set(NOUNS) == set(KINDS)


@pytest.mark.parametrize(
    "path, words, default",
    [
        ("splits.val", "number in [0, 1)", "0.1"),
        ("splits.per_class", "whole number, 1 or more; or null", "null"),
        ("execution.device", "one of cpu, cuda", "cpu"),
        ("execution.graphs", "true or false", "false"),
        ("privacy.epsilon", "number above 0 or null", "null"),
        ("privacy.mechanism", "noise mechanism (`fl show mechanism`)", "gaussian"),
        ("privacy.audit.canaries", "whole number, 10 or more", "1000"),
        ("codec.up", "list of codecs (`fl show codec`)", "[identity]"),
        ("evaluation.clients", "whole number or one of all, held_out", "all"),
        ("stop.target", "mapping of names to numbers", "{}"),
        ("secure_aggregation.modulus_bits", "whole number in [2, 62]; or null", "null"),
        ("client", "client algorithm (`fl show client`)", "the strategy's"),
        ("cohort", "cohort sampler (`fl show cohort`)", "uniform"),
    ],
)
def test_keys_in_words(path, words, default):
    key = tree.below(path)
    assert key.words.replace("; or one of", " or one of") == words and key.default == default


def test_ranges_are_those_of_the_checks():
    found = limits_of(definition_of("clients.apfl:APFL"))
    assert found["alpha"] == Limit(0, 1) and found["alpha_lr"] == Limit(0)
    assert found["steps"] == Limit(0, above=True)  # by the base's own __post_init__


@pytest.mark.parametrize(
    "path, part",
    [
        ("evalution", "'evaluation'"),
        ("evaluation.evry", "'every'"),
        ("client.lrr", "no part has 'lrr'; `fl show client NAME` .* Did you mean 'lr'"),
        ("client.alpha", "'alpha' is a key of .*'apfl'"),
        ("seed.x", "no keys below"),
    ],
)
def test_a_path_that_names_no_key(path, part):
    with pytest.raises(UnknownName, match=part):
        tree.below(path)


def test_a_key_of_a_part_is_that_of_the_default_part():
    assert tree.below("client.lr").default == "0.1" and tree.below("client.lr.schedule").default == "constant"
    said = fl("show", "config", "client.lr").stdout
    assert said.startswith("client.lr ")
    assert said.endswith("This is the key of `sgd`. `fl show client NAME` shows the keys of another part.\n")


def test_a_misspelt_kind_is_recognised():
    assert "Did you mean 'strategy'?" in fl("list", "strateg").stderr


def test_a_reader_of_json_may_close_the_pipe_early():
    command = f"set -o pipefail; {sys.executable} -m fl show config --json | head -c 20"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout) == 20


def test_show_config_prints_the_tree_or_a_part_of_it():
    whole = fl("show", "config").stdout
    paths = {line.split()[0] for line in whole.splitlines() if line and line[0] != " "}
    assert paths == {key.path for key in tree.flat(tree.configuration())}
    assert fl("show", "config", "stop.patience").stdout.splitlines() == [
        "stop.patience  whole number, 1 or more; or null = null",
        "        number of evaluations, 1 or more, without a better `evaluation.select`; null: no limit.",
    ]
    wrong = fl("show", "config", "stop.patient")
    assert wrong.returncode == 2 and "Did you mean 'patience'?" in wrong.stderr


# -- the schema -------------------------------------------------------------------------------------------------------
one_process = pytest.mark.xdist_group("schema")  # which makes the schema once


@pytest.fixture(scope="module")
def schema():
    found = configuration_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@one_process
def test_the_schema_accepts_all_our_configurations(schema):
    files = {path: parse(path.read_text()) for path in sorted((ROOT / "experiments").rglob("*.yaml"))}
    configurations = {path: content for path, content in files.items() if not path.name.endswith(".sweep.yaml")}
    assert len(configurations) > 50
    wrong = {str(path): e.message for path, content in configurations.items() for e in schema.iter_errors(content)}
    assert not wrong


@one_process
def test_the_schema_accepts_what_a_run_writes(schema):
    """Every default written out, as in config.yaml of a run directory."""
    written = json.loads(json.dumps(resolve(CONFIG).to_dict()))
    assert not [error.message for error in schema.iter_errors(written)]


@one_process
@pytest.mark.parametrize(
    "change",
    [
        {"round": 3},
        {"rounds": "many"},
        {"rounds": 0},
        {"seed": -1},
        {"partition": {"name": "dirichlet", "client": 20}},
        {"partition": {"name": "dirichle", "clients": 20}},
        {"partition": {"dirichlet": {"clients": 20, "beta": 0.1}}},
        {"model": {"name": "mlp", "hiden": [8]}},
        {"model": {"mlp": {"hidden": ["wide"]}}},
        {"strategy": "fedavgg"},
        {"strategy": {"name": "fedprox", "clientt": 1}},
        {"client": {"learning_rate": 0.1}},
        {"client": {"mu": 0.1}},  # FedProx has it; this strategy's client has not
        {"client": {"lr": 0.1, "optimiser": {"momentom": 0.9}}},
        {"client": {"lr": {"start": 0.1, "schedule": "cosin"}}},
        {"splits": {"val": 1.0}},
        {"splits": {"validation": 0.1}},
        {"evaluation": {"every": 0}},
        {"evaluation": {"stage": ["received", "adopted"]}},
        {"execution": {"device": "gpu"}},
        {"codec": {"up": [{"top_k": {"rato": 0.1}}]}},
        {"codec": "top_k"},
        {"stop": {"patience": 1.5}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_a_configuration_refuses(schema, change):
    assert not list(schema.iter_errors(CONFIG))
    changed = {**CONFIG, **change}
    assert list(schema.iter_errors(changed))
    with pytest.raises(ConfigError):
        resolve(read(changed))


@one_process
@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "./my_rule.py:Mine", "client": {"anything": 1}},
        {"strategy": {"mine:Rule": {"anything": 1}}},
        {"data": "rows.csv"},
        {"codec": {"up": "top_k", "down": ["delta", {"quantise": {"bits": 8}}]}},
        {"client": {"lr": {"start": 0.1, "schedule": "cosine"}, "batch": "full"}},
        {"extends": "base.yaml", "client": {"mu": 0.1}},
        {"cohort": None, "privacy": {"clipping": {"bound": 1.0}, "sampling": {"rate": 0.1}, "epsilon": 2.0}},
        {"tracking": ["csv", "./mine.py:Tracker"], "baselines": "local"},
    ],
    ids=str,
)
def test_the_schema_accepts_other_ways_of_writing(schema, change):
    assert not [error.message for error in schema.iter_errors({**CONFIG, **change})]


def test_schemas_of_one_section_and_of_one_kind():
    section = jsonschema.Draft202012Validator(schema_of_key(tree.below("stop")))
    assert section.is_valid({"patience": 3}) and not section.is_valid({"patient": 3})
    codec = jsonschema.Draft202012Validator(schema_of_kind("codec"))
    assert codec.is_valid("sign") and codec.is_valid({"name": "top_k", "ratio": 0.1}) and not codec.is_valid("top")
    assert json.loads(fl("show", "stop", "--json").stdout)["title"] == "stop"


# -- pages ------------------------------------------------------------------------------------------------------------
def test_the_reference_pages_are_up_to_date():
    made = reference.pages()
    assert {path.name for path in reference.FOLDER.glob("*")} == set(made)
    stale = [name for name, text in made.items() if (reference.FOLDER / name).read_text() != text]
    assert not stale, "run python -m experiments.reference"


def test_tables_of_the_pages_have_as_many_cells_as_their_heads():
    for path in sorted(reference.FOLDER.glob("*.md")):
        width = 0
        for line in path.read_text().splitlines():
            cells = line.count("|") if line.startswith("|") else 0
            assert not (width and cells and cells != width), f"{path.name}: {line}"
            width = cells


# -- completion -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shell(tmp_path_factory) -> dict[str, str]:
    """The environment of a shell in which `fl` is a command, in a folder with a configuration."""
    folder = tmp_path_factory.mktemp("shell")
    command = folder / "fl"
    command.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'fl'\nfrom fl.cli.app import main\nmain()\n")
    command.chmod(0o755)
    (folder / "x.yaml").write_text(yaml.safe_dump({**CONFIG, "strategy": "fedprox"}))
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # this process may not be the child of a shell
    (folder / "script.sh").write_text(fl("--show-completion", "bash", **named).stdout)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "FOLDER": str(folder)}


def completed(shell: dict[str, str], line: str) -> set[str]:
    """What bash would offer at the end of a line: its words are divided as bash divides them, at "=" and ":"."""
    words = line.replace("=", " = ").replace(":", " : ").split(" ")
    words = [word for i, word in enumerate(words) if word or i == len(words) - 1]
    if line[-1] in "=:":
        words = words[:-1]
    listed = " ".join(f"'{word}'" for word in words)
    code = f"source script.sh; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _fl_completion fl; "
    code += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        ["bash", "-c", code], env=shell, cwd=shell["FOLDER"], capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "line, offered",
    [
        ("fl sho", {"show"}),
        ("fl show strat", {"strategy"}),
        ("fl show strategy fedpr", {"fedproto", "fedprox"}),
        ("fl show config stop.p", {"stop.patience"}),
        ("fl run x.yaml client.m", {"client.mu=", "client.mu=0.01"}),  # the argument of FedProx's client
        ("fl run x.yaml strategy=scaff", {"scaffold"}),
        ("fl run x.yaml execution.executor=", {"auto", "serial", "ray"}),
        ("fl run x.yaml rounds=10 splits.po", {"splits.pooled=false", "splits.pooled=true"}),
        ("fl check codec:top", {"top_k"}),
        ("fl run ", set()),  # the shell completes paths
    ],
)
def test_bash_completes_names_keys_and_values(shell, line, offered):
    found = completed(shell, line)
    assert found == offered or (line.endswith("client.m") and {"client.mu="} < found and len(found) == 2)


# zsh's own `_arguments` works in a line editor only; here it prints the candidates that it gets
ZSH = """
compdef() { : }; _files() { : }; _arguments() { print -r -- "$@" }
source script.zsh; words=("${(@s: :)1}"); CURRENT=${#words}; _fl_completion
"""
OFFERED = {
    "fl sho": {"show"},
    "fl show strategy fedpr": {"fedproto", "fedprox"},
    "fl run x.yaml client.m": {"client.mu=", "client.mu=0.01"},
    "fl run x.yaml strategy=scaff": {"strategy=scaffold"},
    "fl check codec:top": {"codec:top_k"},
}


@pytest.mark.parametrize("line", OFFERED)
@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_complete_names_keys_and_values(shell, name, line):
    """fish completes words itself; zsh evaluates what its script asks of `fl`."""
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    script = Path(shell["FOLDER"]) / f"script.{name}"
    script.write_text(fl("--show-completion", name, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout)
    fish = ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"]
    command = fish if name == "fish" else ["zsh", "-f", "-c", ZSH, "zsh", line]
    done = subprocess.run(command, env=shell, cwd=shell["FOLDER"], capture_output=True, text=True, check=True)
    assert not done.stderr
    if name == "fish":
        assert {row.partition("\t")[0] for row in done.stdout.splitlines()} == OFFERED[line]
    else:  # "word":"meaning" or "word", with \\: for a colon
        words = re.findall(r'(?:\(\(| )"((?:[^":\\]|\\.)*)"(?=:"| |\)\))', done.stdout.replace("\\\\", "\\"))
        assert {word.replace("\\:", ":") for word in words} == OFFERED[line], done.stdout


def test_overrides_name_the_parts_whose_keys_are_completed(tmp_path):
    (tmp_path / "base.yaml").write_text("strategy: {name: scaffold}\npartition: {dirichlet: {alpha: 1.0}}\n")
    (tmp_path / "c.yaml").write_text("extends: base.yaml\n")
    paths = {key.path for key in keys_for(tmp_path / "c.yaml")}
    assert {"client.option", "partition.alpha", "client.optimiser.momentum", "stop.patience"} <= paths
    assert "client.mu" in {key.path for key in keys_for(tmp_path / "c.yaml", ["strategy=fedprox"])}
    assert {key.path for key in keys_for(None, (), "stop.")} == {
        "stop.target",
        "stop.patience",
        "stop.simulated_seconds",
    }
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "client.lr" in {key.path for key in keys_for(tmp_path / "broken.yaml")}


def test_values_of_keys():
    assert suggested_values(tree.below("checkpoint.best")) == ["true", "false"]
    assert suggested_values(tree.below("strategy")) == list(parts.names("strategy"))
    assert suggested_values(tree.below("privacy.epsilon")) == ["null"]


# -- --json -----------------------------------------------------------------------------------------------------------
def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, (*path, name)) if isinstance(command, click.Group) else {(*path, name): command}
    return found


COMMANDS = commands(typer.main.get_command(app))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_answers_in_json_also_after_a_mistake(path):
    done = fl(*path, "--json", "--no-such-option")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_code"] == 2 and "--no-such-option" in error["message"]
    assert "--no-such-option" in done.stderr and "--json" in {o for p in COMMANDS[path].params for o in p.opts}


def test_errors_of_commands_in_json(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "clients": 3}))
    done = fl("run", tmp_path / "c.yaml", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_code"] == 2 and error["key"] == "clients"
    assert done.stderr == f"error: {error['message']}\n"
    assert json.loads(fl("show", "strategy", "fedavgg", "--json").stdout)["error"]["message"].startswith("'fedavgg'")


def test_answers_of_light_commands_in_json(tmp_path):
    def answer(*arguments):
        done = fl(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert answer("list", "codec")["codec"]["top_k"] == parts.names("codec")["top_k"].summary
    assert list(answer("list")) == list(KINDS)
    shown = answer("show", "strategy", "scaffold")
    assert shown["client"] == "scaffold" and shown["arguments"][0]["key"] == "lr"
    assert "lr" in shown["schema"]["properties"]
    assert answer("show", "config")["$schema"].endswith("2020-12/schema")
    laws = answer("check", "codec:identity")
    assert laws["passed"] and all(law["passed"] for law in laws["laws"])
    files = answer("new", "codec", "mine", "--out", tmp_path)["files"]
    assert files and all(Path(file).is_file() for file in files)
    made = answer("flower", "certificates", tmp_path / "tls")
    assert all(Path(file).is_file() for file in made["files"]) and "root-certificates" in made["connection"]
