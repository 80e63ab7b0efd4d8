"""What `retrace COMMAND` runs: a module for each, with a `main` that `run` starts."""

import os
import sys
from importlib import import_module

if sys.argv[:1] == ["-m"] and "RETRACE_WARM" in os.environ:
    import_module("retrace.warm").hand_over()

COMMANDS = {
    "run": "run the pipeline as `dvc repro` does, but faster, and draw the report",
    "complete": "fill the missing pixels of an image of one's own",
    "audit": "count the images that can be identified from a classifier's weights",
    "report": "draw the report, one page that works offline: metrics/report.html",
    "compare": "lay the reports of two Git revisions side by side",
    "sweep": "run many small pipelines, with keys of params.yaml changed",
    "demo": "run the whole pipeline offline, on scikit-learn's digits, in demo/",
    "ui": "show a store's runs in MLflow, on this machine",
    "mend": "mend a dvc.lock that a kill or a merge left broken",
}
