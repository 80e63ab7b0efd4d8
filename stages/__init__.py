"""Retrace: reconstruct the inputs of trained neural networks."""

import os

# Must be set before torch is imported: on a busy machine OpenMP's spinning threads made small
# networks up to 100 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
