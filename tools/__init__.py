import os

# OpenMP's threads spin between two pieces of work, and take a core each while they do: most of the CPU time of a small
# pair, and far more where other processes want the cores. Read when torch is loaded; a user's own setting stays, and
# the processes that tools start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
