"""What the attempts of stages took, and the limits that apply to it."""
