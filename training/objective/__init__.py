"""What a step minimises: R + lambda D, and what stands for rounding in R and in D."""
