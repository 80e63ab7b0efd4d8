"""One short file for each stage of dvc.yaml; what they do is in `retrace`."""

import os
import sys
from importlib import import_module

# Imported by name, so that code that only prints help or saves time is no dependency of a stage.
if sys.argv[:1] == ["-m"]:  # while Python looks for the module that it is to run
    if {"-h", "--help"} & set(sys.argv):
        asked = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        import_module("retrace.commands.help").answer(asked)
    elif "RETRACE_WARM" in os.environ:
        import_module("retrace.warm").hand_over()
