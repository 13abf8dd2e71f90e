"""Reports from run directories: tables and plots of metrics, costs, participation and communication.

variants.py        runs that differ only in their seed       costs.py      what a cost counts
compare.py         table of variants side by side            ledger.py     bytes by group, direction, round, client
client_metrics.py  metrics of each client                    stream.py     accuracy matrix of a task stream
participation.py   how often clients took part               render.py     Markdown, LaTeX, CSV;   plots/  figures
charts.py          charts as data                       page/         the HTML page of `fl report`
"""

from fl.report.client_metrics import clients as clients
