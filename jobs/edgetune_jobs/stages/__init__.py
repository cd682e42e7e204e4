"""The bodies of the stages, `run(context) -> StageOutput`: one module for each stage.

Imports tensors, training, evaluation, publishing and the packages below them, never the runtime or another stage.
"""
