"""DSR inside other people's evaluation harnesses: lmms-eval finds it by its entry point, VLMEvalKit by
`dsr_toolkit.evaluation.harnesses.vlmeval_model`."""
