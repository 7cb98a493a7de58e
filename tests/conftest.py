"""Settings of every test."""

import os

# Before torch is imported, and inherited by the processes that tests start. The models are tiny: more threads would
# spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "2")
