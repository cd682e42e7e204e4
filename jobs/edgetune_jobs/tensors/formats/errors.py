"""What a format says to a model that cannot be written in it."""


class Unsupported(Exception):
    """The model cannot be written in this format. The message says what of it, and what could be done."""
