"""Do users' results stay? A record of many small runs, and the comparison of two records.

    python -m experiments.regression record OLD.json                  on the code as it is
    python -m experiments.regression record NEW.json                  after a change of the code
    python -m experiments.regression compare OLD.json NEW.json        exit code 1 if a run differs

A record holds for every run: the digest of the model, hashes of the ledger and of the clients' metrics, the metrics
of all rounds, and the plan of training; or, if the run failed, the first line of the error. The models lie beside it,
in the folder OLD.json.models, so that `compare` can say by how much two of them differ.

    fl_names.py    what the tool takes from fl beside `fl.run` and `fl.resume`; adapt this file when fl's names change
    case.py        what describes one run
    strategies.py  every strategy in many settings            features.py  every other part and section
    headline.py    the experiments of this folder, shortened  parts.py     data sets and a model that the runs use
    record.py      performs runs and writes a record          compare.py   compares two records
"""
