"""What a method is written with: a strategy on the server and a client algorithm.

strategy.py          the server's rule                      client.py            base of client algorithms
requests.py          exchanges and other requests           local_training.py    gradient steps with hooks
reduction.py         sums and means of updates              phase.py             steps with one setting
fold.py              the fixed tree of a reduction          context.py           what a client knows and returns
messages.py          broadcast and update                   optimiser.py         optimisers, learning-rate schedules
sampler.py           cohorts                                transform.py         clipping and noise of updates
baseline.py          runs for comparison
"""
