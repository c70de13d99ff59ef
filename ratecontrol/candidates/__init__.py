"""The candidates of a picture: which there are, what they will be worth, which to measure."""
