"""The process around a stage: request in, inputs fetched, body called, outputs and manifest written, exit code out.

Imports every package except stages, whose modules it loads by name.
"""
