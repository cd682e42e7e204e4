"""Training, merging, quantization, evaluation and publishing: what the containers of the stages run.

    __main__                                           the process's entry point
    runtime, stages                                    the process around a stage, and the stages' bodies
    tensors, training, evaluation, publishing          what the bodies are made of
    stage                                              what a body gets and gives
    models                                             models and adapters as folders of safetensors
    data                                               rows, prompts, tokens
    store                                              S3, local folders, the hub
    errors, messages                                   how a stage ends when it does not finish; parts of messages

A room imports from lines below its own, never from its own line or above. import-linter checks it (pyproject.toml).
"""
