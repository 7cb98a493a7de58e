"""The readers of files, for code that has a processor and not this package, as an endpoint does: `processor.media`."""

from .image_reader import TooLarge, read_image, read_with_alpha
from .video_reader import Video, VideoLimits


class Media:
    """See [`read_image`], [`read_with_alpha`], [`Video`], [`VideoLimits`]; [`TooLarge`] is what limits raise."""

    read_image = staticmethod(read_image)
    read_with_alpha = staticmethod(read_with_alpha)
    Video, VideoLimits, TooLarge = Video, VideoLimits, TooLarge
