"""Python imports this module when a worker of Ray starts, because its folder is on the path; see instants.py."""

import os
import sys

if "FL_FAULTS_PLAN" in os.environ and any("default_worker" in word for word in sys.orig_argv):
    from experiments.faults.instants import plan_of_worker

    plan_of_worker()
