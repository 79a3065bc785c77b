"""Studies that use the library; only the command line imports them."""
