"""Training, merging, quantization, evaluation and publishing: what the stages' containers run.

    __main__                                           the process's entry point
    runtime, stages                                    the process around a stage, and the stages' bodies
    tensors, training, evaluation, publishing          what the bodies use
    stage                                              the interface of a body: context in, output out
    models                                             models and adapters as folders of safetensors
    data                                               rows, prompts, tokens
    store                                              S3, local folders, the hub
    errors, wording                                    errors that end a stage; parts of messages

A package imports only from the lines below its own. import-linter checks this (pyproject.toml).
"""
