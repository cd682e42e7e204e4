"""One module a stage, each with `run(context) -> StageOutput`. No stage imports another."""
