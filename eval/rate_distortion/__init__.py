"""Points and curves of rate and distortion, and the BD-rate between them."""
