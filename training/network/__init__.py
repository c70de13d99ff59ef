"""The network in training: where it is computed, its form for all lambdas at once, its integers and the way back."""
