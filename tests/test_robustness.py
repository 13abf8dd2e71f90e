"""Everything of docs/robustness.md happens: the same bits, or a refusal that names the mistake."""

import pytest

from experiments.robustness.case import perform
from experiments.robustness.cost import milliseconds
from experiments.robustness.models import MODELS
from experiments.robustness.table import BEGIN, CASES, END, PAGE, table


def member(case):
    slow = [pytest.mark.slow] if "Hugging Face" in case.kind else []
    return pytest.param(case, id=f"{case.kind}-{case.name}", marks=slow)


@pytest.mark.parametrize("case", [member(case) for case in CASES])
def test_a_member_has_its_outcome(case):
    (outcome,) = perform([case])
    assert outcome.agrees(case), outcome
    row = table([(case, outcome)]).splitlines()[-1]
    kind, name, result = (cell.strip() for cell in row.strip("|").split(" | "))
    rows = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    assert any(r.startswith(f"| {kind} |") and name in r and r.endswith(f"| {result} |") for r in rows), (
        "run python -m experiments.robustness"
    )


@pytest.mark.ray
def test_models_have_the_same_outcome_on_ray_workers():
    models = [case for case in MODELS if "Hugging Face" not in case.kind]  # tests/models/test_probe.py has these
    for case, outcome in zip(models, perform(models, (2,))):
        assert outcome.agrees(case), f"{case.kind}: {case.name}: {outcome}"


def test_the_cost_of_a_first_look_is_measured():
    assert milliseconds("softmax") > 0
