"""An adapter: its files, the layers that it changes, and the target modules of the spec that choose them."""
