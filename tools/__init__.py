import os

# OpenMP's threads spin between two pieces of work, and take a core each while they do: most of the CPU time of a small
# pair, and far more where other processes want the cores. Read when torch is loaded; a user's own setting stays.
# Trainings, in processes of their own, keep torch's default: their many short operations would wait for sleepers.
WAIT_POLICY_IS_THE_USERS = "OMP_WAIT_POLICY" in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
