"""The body of each stage, `run(context) -> StageOutput`: one module a stage.

Imports tensors, training, evaluation, publishing and what is below them, never the runtime or another stage.
"""
