"""The errors a user can cause. Each carries one line that says what is wrong and what to do next."""


class UserError(Exception):
    """Bad input or usage: the command prints the message as one line and exits with code 2."""


class BitstreamError(UserError):
    """A stream that is damaged, truncated, foreign, or made with other weights."""


class WeightsError(UserError):
    """A weights folder or model file that is missing, damaged or of another version."""


class ImageError(UserError):
    """A picture that cannot be read, or that this codec does not take."""
