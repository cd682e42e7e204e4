"""Settings of the property tests."""

from hypothesis import settings

# Other work shares the machine: how long one example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
