# In the source tree this name leads to the real file at the root; in an exported folder the real file takes its place.
from configuration_dsr import (  # noqa: F401
    DSRConfig,
    Pi3Config,
    intrinsics_problem,
    pi3_encoder_config,
    pi3_image_size,
    pose_problem,
)
