"""Makes relatives of a model: kept libraries compress, and the kit counts bits and gaps."""
