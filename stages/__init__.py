"""One short file for each stage of dvc.yaml; what they do is in `retrace`."""

import sys
from importlib import import_module

if sys.argv[:1] == ["-m"] and {"-h", "--help"} & set(sys.argv):
    # By its name, since what only words something is no dependency of what computes.
    import_module("retrace.commands.help").answer()
