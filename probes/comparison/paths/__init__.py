"""Role paths in two models: by way of which words each contrast reaches its answer."""
