"""The operator: decisions on values, a pass that carries them out, the process around it. May import the contract."""
