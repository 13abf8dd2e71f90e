"""What users bring: models, data and code that fl trains, or refuses before round 0. The table of docs/robustness.md.

    python -m experiments.robustness                  run every member, and write the table (minutes)
    python -m experiments.robustness --serial         the same without Ray, and only print it (half a minute)
    python -m experiments.robustness cost             print the time that the first look at a model takes

    case.py       a member, and what comes of it          models.py, networks.py, data.py, user_code.py    the members
    cost.py       time of the first look                  __main__.py                                      the command

The tests run the same members (tests/test_robustness.py).
"""
