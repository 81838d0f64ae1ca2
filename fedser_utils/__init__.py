"""fedser: federated speech emotion recognition, attacked, defended and measured honestly.

Clips become log-Mel images, speakers become clients, clients become one model, and the model is
attacked, defended and measured. Each step is one module; the notebooks call them in order.
"""

__version__ = "0.1.0"

import os as _os

for _name in ("FLWR_DISABLE_UPDATE_CHECK", "FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
    _os.environ.setdefault(_name, "1" if "DISABLE" in _name else "0")  # before Flower is imported
