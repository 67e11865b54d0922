"""alseg: simulate pool-based active learning for 3D medical image segmentation."""

import getpass
import os

__version__ = "0.1.0"

# Before anything imports MLflow, as Lightning does: it would otherwise send usage statistics.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

# Before anything imports MONAI, which asks for it: a container's user need not have a name.
try:
    getpass.getuser()
except (KeyError, OSError):
    os.environ["USER"] = str(os.getuid())
