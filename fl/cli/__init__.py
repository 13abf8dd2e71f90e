"""The command line of fl, a file for each group of commands.

    app.py        the table of all commands              runs.py      run, resume, digest
    options.py    options that several commands share    reports.py   compare, ledger, participation, matrix, partition
    overrides.py  key=value arguments                    tools.py     tune, bench, doctor; sweep.py
    errors.py     error lines and exit codes             parts.py     list, show, check
    format.py     tables and summaries as text           flower.py    flower run, export, certificates
    docstring.py  `Args:` sections, for `fl show`        execute.py   runs with progress, interrupts.py: Ctrl-C

Results go to stdout, everything else to stderr. Commands import heavy packages (torch, ray, numpy, pydantic) inside
their functions, so that `fl --help` answers in half a second.
"""
