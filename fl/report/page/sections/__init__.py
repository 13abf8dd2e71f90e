"""The sections of the page in order; each is a function of the runs, which may return None.

A section recognises what a run directory holds: names of metrics, tensors in the state of the strategy, states of
clients. None of them knows a method by name, so a new method has its section as soon as its runs hold the same things.
"""

from __future__ import annotations

from fl.report.page.section import MakeSection
from fl.report.page.sections.answers import answers
from fl.report.page.sections.client_quality import client_quality
from fl.report.page.sections.configuration import configuration, environment
from fl.report.page.sections.cost import participation, sent_bytes, simulated_time
from fl.report.page.sections.factors import factors
from fl.report.page.sections.holdings import holdings, vertical_split
from fl.report.page.sections.images import images
from fl.report.page.sections.masks import masks
from fl.report.page.sections.other_metrics import affinity, other_metrics, privacy
from fl.report.page.sections.overview import accuracy_and_loss, overview
from fl.report.page.sections.prototypes import prototypes
from fl.report.page.sections.streams import stream
from fl.report.page.sections.timeline import timeline

SECTIONS: tuple[MakeSection, ...] = (
    *(overview, accuracy_and_loss, client_quality, sent_bytes, simulated_time, participation, holdings, vertical_split),
    *(privacy, stream, affinity, prototypes, factors, masks, images, answers, other_metrics),
    *(timeline, configuration, environment),
)
