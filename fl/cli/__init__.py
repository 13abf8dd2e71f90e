"""The command line of fl, a file for each group of commands.

    app.py          the table of all commands              runs.py     run, resume, evaluate, digest
    options.py      options that several commands share    reports.py  report, compare, plot, ledger, partition, ...
    overrides.py    key=value arguments                    tools.py    tune, bench, doctor; sweep.py
    completion.py   values that shells complete            parts.py    new, list, show, check
    errors.py       error lines and exit codes             flower.py   flower run, export, certificates
    json_output.py  --json: one JSON value on stdout       execute.py  runs with progress, interrupts.py: Ctrl-C
    format.py       tables and summaries as text           show.py     the text of `fl show`

Results go to stdout, everything else to stderr. Commands import heavy packages (torch, ray, numpy, pydantic) inside
their functions, so that `fl --help` answers in half a second.
"""
