"""Retrace: reconstruct the inputs of trained neural networks."""

import os

# Read when torch is imported. OpenMP's threads wait for the next small matrix by spinning: for as
# long as they do by default, two processes on the same cores take up to 15 times as long; not at
# all, small networks alone on theirs take up to 8 times as long. This is about 10 microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
