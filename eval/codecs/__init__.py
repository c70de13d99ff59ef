"""The codecs that ours is compared with."""
