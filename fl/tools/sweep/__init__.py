"""Sweeps: variants of one configuration, tuned on one seed, run on several.

sweep.py     the value Sweep, and its stages: check, tune, choose, run       search.py    which setting comes next
reading.py   a Sweep from a file, or from the arguments of a command         runs.py      one run of a sweep
tuning.py    one variant's trials: propose, judge, choose                    progress.py  k of n, time left
workers.py   runs in this process, or several at a time in processes
"""
