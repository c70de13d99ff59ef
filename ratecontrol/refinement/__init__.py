"""Better integers for one picture, by gradients through the decoder and the rate of its entropy model."""
