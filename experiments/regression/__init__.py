"""Record the results of many small runs, and compare two records to find changed results.

    python -m experiments.regression record OLD.json                  before a change of the code
    python -m experiments.regression record NEW.json                  after the change
    python -m experiments.regression compare OLD.json NEW.json        exit code 1 if a run differs

A record holds for each run: the digest of the model, hashes of the ledger and of the clients' metrics, the metrics of
all rounds, and the plan. For a failed run it holds the first line of the error. The models are in the folder
OLD.json.models, so that `compare` can show how much two models differ.

    fl_names.py    names of fl that the tool uses besides `fl.run` and `fl.resume`; adapt it when fl's names change
    case.py        description of one run
    strategies.py  each strategy in many settings             features.py  all other parts and sections
    headline.py    shortened experiments of this repository   parts.py     data sets, models and files for the runs
    record.py      performs runs and writes a record          compare.py   compares two records
"""
