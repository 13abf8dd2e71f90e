"""What follows a run: callbacks, progress, the log and the profile.

callback.py      a user's own code at fixed points of a run
round_lines.py   what progress says about each round;   progress.py, screens.py, run_log.py   where it is shown
spans.py         timed sections in every process
profile.py       seconds by category and a trace, from the spans
"""
