"""Scale: values as bytes, the store of finished work, and the engines that run it."""
