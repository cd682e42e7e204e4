"""The decisions of Edgetune: observe, plan, render, status, and the pass that carries them out."""
