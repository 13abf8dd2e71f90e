"""Ray nodes that share no file, on this machine: equal results, lost nodes, rates, bytes, and larger clusters on paper.

python -m experiments.benchmarks.nodes OUT [equal lost rates scale]

cluster.py    nodes with folders of their own, guarded by an audit hook
methods.py    the methods of the tables
__main__.py   the tables
"""
