from submission import __version__ as __version__  # before all else: it minds Ctrl-C while libraries are imported
