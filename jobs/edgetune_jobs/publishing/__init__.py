"""Published models in a store: versions and the pointer, and their verification and download.

Imports stage, models, data, store and errors.
"""
