"""How a model would run on an edge device: its speed and memory within a budget of cores and memory."""
