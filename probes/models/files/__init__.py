"""Files of a model: folders, adapters, provenance."""
