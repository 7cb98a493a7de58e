# In the source tree this name leads to the real file at the root; in an exported folder the real file takes its place.
from configuration_dsr import (  # noqa: F401
    CADRecodeConfig,
    CadrilleConfig,
    DSRConfig,
    FrozenQwenSAMConfig,
    Page4DConfig,
    Pi3Config,
    SceneMapConfig,
    SceneQFormerConfig,
    intrinsics_problem,
    page4d_image_size,
    pi3_encoder_config,
    pi3_image_size,
    pose_problem,
    sam_config,
)
