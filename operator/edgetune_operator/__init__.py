"""The operator: decisions on values, a pass that carries them out, and the process around it. Imports the contract."""
