"""Progress and profile of a run: what it shows while it runs, and where its time goes.

progress.py   the table on the terminal    spans.py   timed sections in every process    profile.py   their sums and trace
"""
