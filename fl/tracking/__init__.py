"""Progress and profile of a run.

    progress.py   the table on the terminal
    spans.py      timed sections in every process
    profile.py    seconds by category and a trace, from the spans

Watchers are called with ("start", run), ("ready", run) and ("round", row).
"""
