"""What a decoded picture is worth: the score of the challenge, its differentiable twin, the figures of papers."""
