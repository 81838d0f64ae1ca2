"""fedser: federated speech emotion recognition, attacked, defended and measured honestly.

Clips become log-Mel images, speakers become clients, clients become one model, and the model is
attacked, defended and measured. Each step is one module; the notebooks call them in order.
"""

__version__ = "0.1.0"
