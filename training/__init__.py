import submission as submission  # before all else: it minds Ctrl-C while libraries are imported
