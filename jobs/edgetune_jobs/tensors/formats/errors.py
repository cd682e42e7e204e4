"""The error of an edge format that does not support a model."""


class Unsupported(Exception):
    """The format does not support the model; the message is the reason."""
