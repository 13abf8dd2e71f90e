"""`fl new`: what it writes runs, and its own tests pass."""

import pytest

from tests.process import python
from tests.test_bad_configs import fl

KINDS = ("strategy", "client", "partition", "codec")


def test_the_tests_of_new_parts_pass(capsys, tmp_path):
    for kind in KINDS:
        code, out, _ = fl(capsys, "new", kind, f"my_{kind}", "--out", str(tmp_path))
        assert code == 0 and len(out.splitlines()) == 3
    files = [str(tmp_path / f"test_my_{kind}.py") for kind in KINDS]
    done = python(f"import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{files}]))", tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_project_and_an_experiment_run(capsys, tmp_path):
    for kind, folder in (("project", "mine/"), ("experiment", "")):
        assert fl(capsys, "new", kind, "mine", "--out", str(tmp_path))[0] == 0
        assert (tmp_path / folder / "README.md").is_file()
    arguments = ("--only", "Mine", "--out", str(tmp_path / "runs"))
    code, out, _ = fl(capsys, "sweep", str(tmp_path / "mine" / "mine.sweep.yaml"), *arguments)
    assert code == 0 and "| Mine | 3 | 10 |" in out
    assert fl(capsys, "run", str(tmp_path / "mine.yaml"), "--smoke", "--out", str(tmp_path / "smoke"))[0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("strategi", "x"), "KIND: 'strategi' is not one of"),
        (("strategy", "my-rule"), "NAME: 'my-rule' is no Python name in lower case; write for example my_strategy"),
        (("codec", "class"), "NAME: 'class' is no Python name"),
        (("codec", "there"), "there.py exists; choose another name"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(arguments, message, capsys, tmp_path):
    (tmp_path / "there.py").write_text("mine")
    code, _, err = fl(capsys, "new", *arguments, "--out", str(tmp_path))
    assert code == 2 and message in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"
