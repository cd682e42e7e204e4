"""The process around a stage: request, inputs, body, outputs, manifest, exit code.

Imports every package except stages, whose modules it loads by name.
"""
