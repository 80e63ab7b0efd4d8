"""One short file for each stage of dvc.yaml; what they do is in `retrace`."""

import sys
from importlib import import_module

# While Python looks for the module that `python -m` names, sys.argv begins with "-m".
if sys.argv[:1] == ["-m"] and {"-h", "--help"} & set(sys.argv):
    # By its name, since what only words something is no dependency of what computes.
    asked = sys.orig_argv[sys.orig_argv.index("-m") + 1]
    import_module("retrace.commands.help").answer(asked)
