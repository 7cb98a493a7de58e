# In the source tree this name leads to the real file at the root; in an exported folder the real file takes its place.
from configuration_dsr import DSRConfig, pi3_encoder_config  # noqa: F401
